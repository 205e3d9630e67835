"""The large protocols: what they fix, and how a checkpoint to start from is known."""

from __future__ import annotations

import pytest

from benchmark import protocol, registry
from benchmark.files import UserError

IMAGENET = [name for name in protocol.names() if name.startswith("imagenet-")]


def test_the_large_protocols_are_there():
    wanted = ["256-xl2", "512-xl2", "256-xl2-ft", "512-xl2-ft", "256-b2", "256-s2", "256-s2-10k"]
    assert {f"imagenet-{name}" for name in wanted} <= set(IMAGENET)


@pytest.mark.parametrize("name", IMAGENET)
def test_large_protocols_are_the_papers(name):
    found = protocol.load(name)
    ((train, tests),) = found.cells.items()
    wanted = {
        "256x256": ["128x128", "256x256", "320x320", "384x384", "448x448", "512x512", "512x384", "384x512"],
        "512x512": ["256x256", "512x512", "768x768", "896x896", "1024x1024"],
    }
    assert tests == wanted[train]
    assert train.split("x")[0] in name
    core, sample = found.core, found.sample
    sizes = {"s2": (384, 12, 6), "b2": (768, 12, 12), "xl2": (1152, 28, 16)}
    assert (core.width, core.depth, core.heads) == sizes[name.split("-")[2]]
    assert (core.patch, core.channels, core.classes, core.mlp_ratio) == (2, 4, 1000, 4.0)
    assert (found.data.card, found.data.representation, found.data.factor) == ("imagenet", "latents", 8)
    assert found.objective == protocol.Objective(name="ddpm")
    assert (sample.solver, sample.steps, sample.guidance, sample.guidance_channels) == ("ddpm", 250, 1.5, "three")
    assert (found.train.batch, found.train.lr, found.train.ema, found.train.weight_decay) == (256, 1e-4, 0.9999, 0.0)
    assert found.score.detector == "inception"
    tuned = name.endswith("-ft")
    assert found.train.steps == (100_000 if tuned else 400_000)
    assert bool(found.train.init) == tuned
    assert found.options == {"ledit": {"recipe": "finetune" if tuned else "scratch"}}
    assert sample.count == (10_000 if name.endswith("10k") or train == "512x512" else 50_000)
    for method, options in found.options.items():
        registry.load(method).make_options(options)


def test_reduced_protocols_say_so_and_share_no_hash():
    assert "10,000" in protocol.load("imagenet-256-s2-10k").title
    hashes = [protocol.load(name).hash for name in IMAGENET]
    assert len(set(hashes)) == len(hashes)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    here, there = tmp_path / "here.pt", tmp_path / "there.pt"
    here.write_bytes(b"weights")
    there.write_bytes(b"weights")
    first = protocol.load("imagenet-256-xl2-ft", [f"train.init={here}"])
    second = protocol.load("imagenet-256-xl2-ft", [f"train.init={there}"])
    assert first.train.init == str(here)  # what the training opens
    assert first.hash == second.hash
    assert first.training("256x256") == second.training("256x256")
    assert str(tmp_path) not in str(first.rules())
    there.write_bytes(b"other weights")
    other = protocol.load("imagenet-256-xl2-ft", [f"train.init={there}"])
    assert other.hash != first.hash
    assert other.training("256x256") != first.training("256x256")


def test_a_pinned_checkpoint_belongs_to_the_protocol(tmp_path, monkeypatch):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    identity = protocol.identity(str(weights))
    text = (protocol.FOLDER / "imagenet-256-xl2-ft.yaml").read_text()
    (tmp_path / "pinned.yaml").write_text(text.replace("init: DiT-XL-2-256x256.pt", f'init: "{identity}"'))
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    found = protocol.load("pinned", [f"train.init={weights}"])
    assert not found.custom
    assert found.hash == protocol.load("pinned").hash
    assert protocol.load("pinned", [f"train.init={weights}", "train.steps=5"]).custom
    weights.write_bytes(b"another one")
    assert protocol.load("pinned", [f"train.init={weights}"]).custom


def test_an_absent_checkpoint_is_named():
    with pytest.raises(UserError, match=r"train.init: no/such.pt is not there"):
        protocol.load("imagenet-256-xl2-ft", ["train.init=no/such.pt"])
