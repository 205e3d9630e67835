"""What a stage needs is asked before: the smoke protocol fits, and what cannot fit is refused with the figure and its cause."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark import protocol
from benchmark.files import UserError
from benchmark.plan import needs
from benchmark.plan.place import Run


def test_the_smoke_protocol_fits_this_machine(tmp_path: Path) -> None:
    rules = protocol.load("smoke")
    needs.check_memory(needs.training(rules, "16x16", Run(tmp_path)), "train")
    needs.check_memory(needs.sampling(rules, "32x24"), "sample")
    needs.check_memory(needs.reference(rules), "reference")
    needs.check_disk(1e6, "shards", tmp_path / "not" / "there" / "yet")


def test_weights_are_counted_as_the_optimizer_holds_them() -> None:
    """DiT-XL/2 has 675 million weights (Peebles and Xie 2023, table 1); 20 bytes each in training."""
    needed = needs.training(protocol.load("imagenet-256-xl2"), "256x256", Run())
    assert needed["weights, optimizer and average"] == pytest.approx(675e6 * 20, rel=0.02)


def test_guidance_doubles_the_activations_of_sampling() -> None:
    plain, guided = (protocol.load("imagenet-256-xl2", [f"sample.guidance={scale}"]) for scale in (1, 1.5))
    (weights, one), (same, two) = (needs.sampling(rules, "256x256").values() for rules in (plain, guided))
    assert two == 2 * one > 0
    assert weights == same


def test_what_cannot_fit_is_refused_with_the_figure_and_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "memory", lambda: 4.0 * 2**30)
    rules = protocol.load("smoke", ["core.width=8192", "core.depth=64", "core.heads=64"])
    with pytest.raises(UserError, match=r"train needs about [\d.]+ TB of memory, mostly for weights.*has 4.29 GB"):
        needs.check_memory(needs.training(rules, "16x16", Run(tmp_path)), "train")
    rules = protocol.load("smoke", ["train.batch=1000000"])
    with pytest.raises(UserError, match="mostly for the activations of 1000000 images"):
        needs.check_memory(needs.training(rules, "16x16", Run(tmp_path)), "train")
    with pytest.raises(UserError, match=r"shards needs about [\d.,e+]+ PB on disk, but .* left"):
        needs.check_disk(1e18, "shards", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"shards needs about 2 kB on disk, but .* has 0 B left"):
        needs.check_disk(2000, "shards", tmp_path)


@pytest.mark.parametrize(
    ("tasks", "own", "workers", "expected"),
    [
        (None, None, 0, 4),  # two devices share half of sixteen processors
        (None, None, 6, 3),
        (2, 10, 0, 5),  # srun started both ranks: half of what is each one's own
        (2, 10, 6, 3),  # said on the command line
        (1, 16, 0, 4),  # one task that starts the ranks itself: they share its processors
        (2, 1, 0, 1),
    ],
)
def test_decoders_are_of_the_processors_that_are_ours(tasks, own, workers, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for name, value in (("NTASKS", tasks), ("CPUS_PER_TASK", own)):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert Run(devices="2", workers=workers).decoders == expected


def test_a_batch_is_shared_by_devices() -> None:
    """So are its activations; the weights are not."""
    rules = protocol.load("imagenet-256-xl2")
    (same, one), (weights, two) = (list(needs.training(rules, "256x256", Run(devices=n)).values())[:2] for n in ("1", "2"))
    assert (weights, one) == (same, 2 * two)
