"""Training: exact resume however it ended, complete or absent outputs, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file

from benchmark import files, progress, protocol, registry
from benchmark.evaluate import reference
from benchmark.files import ROOT, Stopped, UserError
from benchmark.identity import Training
from benchmark.model import flops
from benchmark.model.dit import Core
from benchmark.model.method import Method
from benchmark.plan import layout, needs, stages
from benchmark.plan.dataset import DataSet
from benchmark.plan.place import Run, machine
from benchmark.run import callbacks, train
from benchmark.run.callbacks import Atomic

STEPS = 24
SETTINGS = ["train.steps=24", "train.precision=float32"]


def run(out: Path, **options) -> Run:
    return Run(out=out, **options)


@pytest.fixture(scope="module")
def smoke() -> protocol.Protocol:
    return protocol.load("smoke", SETTINGS)


@pytest.fixture(scope="module")
def uninterrupted(smoke, tmp_path_factory) -> Path:
    return train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path_factory.mktemp("complete")))


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / train.WEIGHTS) for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def final_raw(folder: Path) -> dict[str, torch.Tensor]:
    last = max((folder / train.CHECKPOINTS).glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1].split("-")[0]))
    return torch.load(last, weights_only=True)["current_model_state"]


def test_report_and_skip(smoke, uninterrupted, capsys):
    report = json.loads((uninterrupted / train.REPORT).read_text())
    assert report["steps"] == STEPS
    assert report["method"] == "extrapolation"
    assert report["machine"] == machine()
    assert 0 < report["loss"] < 3
    method = registry.build("extrapolation", smoke, "16x16", 0)
    assert report["parameters"] == sum(value.numel() for value in method.parameters())
    again = train.train(Training(smoke, "extrapolation", "16x16", 0), run(uninterrupted.parents[1]))
    assert again == uninterrupted
    assert "already complete, skipped" in capsys.readouterr().out


def test_a_complete_training_is_found_on_a_machine_too_small_for_it(smoke, uninterrupted, monkeypatch):
    def refuse(*_: object) -> None:
        raise UserError("needs more memory")

    monkeypatch.setattr(needs, "check_memory", refuse)
    here = run(uninterrupted.parents[1])
    assert train.train(Training(smoke, "extrapolation", "16x16", 0), here) == uninterrupted
    with pytest.raises(UserError, match="needs more memory"):
        train.train(Training(smoke, "extrapolation", "16x16", 5), here)


def test_ema_is_the_average_of_the_weights(smoke, tmp_path, monkeypatch):
    """The saved weights follow w <- d w + (1 - d) raw, written out here by hand."""
    trace = []
    step = Method.on_before_zero_grad

    def remember(self, optimizer):
        trace.append({key: value.clone() for key, value in self.state_dict().items()})
        return step(self, optimizer)

    monkeypatch.setattr(Method, "on_before_zero_grad", remember)
    short = dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, steps=4))
    folder = train.train(Training(short, "extrapolation", "16x16", 0), run(tmp_path, every_steps=1, keep=True))
    monkeypatch.undo()
    raw = [trace[number] for number in (1, 2, 3)] + [final_raw(folder)]  # after each of the four steps
    average = raw[0]
    for state in raw[1:]:
        average = {key: short.train.ema * average[key] + (1 - short.train.ema) * state[key] for key in average}
    saved = load_file(folder / train.WEIGHTS)
    for key in saved:
        torch.testing.assert_close(saved[key], average[key], rtol=1e-5, atol=1e-7)
    assert not torch.equal(saved["core.final_layer.linear.weight"], raw[-1]["core.final_layer.linear.weight"])


def test_a_training_starts_from_the_checkpoint_that_its_protocol_names(smoke, tmp_path):
    """After one step of no length, the average is what it started from: its first update copies the weights."""
    given, file = small.fill(registry.build("nope", smoke, "16x16", 0)).core.state_dict(), tmp_path / "core.pt"
    torch.save(given, file)
    for init in ([f"train.init={file}"], []):
        rules = protocol.load("smoke", ["train.precision=float32", "train.steps=1", "train.lr=1e-12", *init])
        state = load_file(train.train(Training(rules, "nope", "16x16", 0), run(tmp_path / "runs")) / train.WEIGHTS)
        assert state.keys() == {f"core.{key}" for key in given}
        same = [torch.allclose(state[f"core.{key}"], value, rtol=0, atol=1e-6) for key, value in given.items()]
        assert all(same) == bool(init)


def test_the_learning_rate_of_a_training_moves_at_every_step(smoke, tmp_path, monkeypatch):
    """By Lightning's loop, whose epoch here is the whole training."""
    rates = []
    monkeypatch.setattr(
        Method, "on_before_optimizer_step", lambda self, optimizer: rates.append(optimizer.param_groups[0]["lr"]), raising=False
    )
    rules = protocol.load(
        "smoke", ["train.precision=float32", "train.steps=8", "train.warmup=4", "train.decay=3", "train.lr=1e-3"]
    )
    train.train(Training(rules, "nope", "16x16", 0), run(tmp_path))
    assert rates == pytest.approx([1e-3 * min(1, (step + 1) / 4) * min(1, (8 - step) / 3) for step in range(8)])


def test_a_trainings_gradients_are_clipped(smoke, tmp_path, monkeypatch):
    """By Lightning's loop, not by a call of our own."""
    norms = []

    def remember(self, optimizer):  # after the step that used them, before they are zeroed
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        if gradients:
            norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    monkeypatch.setattr(Method, "on_before_zero_grad", remember)
    short = dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, steps=4, clip=0.01))
    train.train(Training(short, "extrapolation", "16x16", 0), run(tmp_path))
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert len(norms) >= 3


def crash(training: Training, where: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until the middle of step 13."""
    original = Method.training_step

    def failing(self, batch, batch_index=0):
        if batch["step"] == 13:
            raise RuntimeError("pulled the plug")
        return original(self, batch, batch_index)

    with monkeypatch.context() as context:
        context.setattr(Method, "training_step", failing)
        with pytest.raises(RuntimeError, match="plug"):
            train.train(training, where)


def test_resume_after_a_crash_is_bit_equal(smoke, uninterrupted, tmp_path, monkeypatch, capsys):
    crash(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, every_steps=5), monkeypatch)
    folder = next(tmp_path.glob("trainings/*"))
    assert not layout.is_trained(folder)
    # The newest checkpoints are torn, as by a kill while they were written: the one before is used.
    newest = folder / train.CHECKPOINTS / "step=10.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    newest.with_name("step=12.ckpt").write_bytes(b"torn")
    assert train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, every_steps=5)) == folder
    said = capsys.readouterr().out
    assert "step=10.ckpt is damaged" in said
    assert "step=12.ckpt is damaged" in said
    assert "continuing from step 5" in said
    assert same_weights(folder, uninterrupted)


def test_a_core_that_is_compiled_trains_to_the_same_weights(smoke, uninterrupted, tmp_path, monkeypatch):
    """And the report says so, if only of a part. That cores compile is the contract's matter: here the compiler only counts."""
    compiled, calls, training = [], [], Training(smoke, "extrapolation", "16x16", 0)

    def compiler(call, **_):
        compiled.append(type(call.__self__))
        return lambda *given: calls.append(None) or call(*given)

    monkeypatch.setattr(torch, "compile", compiler)  # which a module's `compile` asks
    crash(training, run(tmp_path, every_steps=5, compile=True), monkeypatch)
    assert compiled == [Core]
    assert len(calls) == 13
    folder = train.train(training, run(tmp_path))
    assert len(calls) == 13
    assert json.loads((folder / train.REPORT).read_text())["compiled"]
    assert same_weights(folder, uninterrupted)


def test_killed_between_the_last_step_and_the_weights(smoke, uninterrupted, tmp_path):
    folder = train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, every_steps=8, keep=True))
    (folder / train.WEIGHTS).unlink()
    train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path))
    assert same_weights(folder, uninterrupted)
    assert not (folder / train.CHECKPOINTS).exists()


def test_a_checkpoint_of_another_training_is_refused(smoke, tmp_path):
    """Copied into the folder by hand, say."""
    folder = train.train(Training(smoke, "extrapolation", "16x16", 1), run(tmp_path, every_steps=8, keep=True))
    assert train.newest(folder / train.CHECKPOINTS, folder.name.rpartition("-")[2])[1] == STEPS
    with pytest.raises(UserError, match=r"\.ckpt belongs to another training; remove it or choose another OUT"):
        train.newest(folder / train.CHECKPOINTS, "0" * 12)


def test_checkpoints_go_when_a_training_is_complete(smoke, uninterrupted, tmp_path, monkeypatch):
    assert not (uninterrupted / train.CHECKPOINTS).exists()
    seen = []

    def killed(folder: Path, run: Run) -> None:
        seen.append((layout.is_trained(folder), len(list(folder.glob("checkpoints/*.ckpt")))))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "discard", killed)  # between the report and the removing
    with pytest.raises(KeyboardInterrupt):
        train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, every_steps=8))
    monkeypatch.undo()
    assert seen == [(True, 2)]
    (folder,) = tmp_path.glob("trainings/*")
    for keep, left in ((True, True), (False, False), (False, False)):
        assert train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, keep=keep)) == folder
        assert (folder / train.CHECKPOINTS).exists() == left
    assert same_weights(folder, uninterrupted)
    assert train.load_weights(registry.build("extrapolation", smoke, "16x16", 0), folder)["steps"] == STEPS


def test_checkpoints_that_were_kept_stay_whatever_comes_next(smoke, tmp_path):
    folder = train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, every_steps=8, keep=True))
    before = sorted((folder / train.CHECKPOINTS).iterdir())
    assert before
    train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path))
    assert sorted((folder / train.CHECKPOINTS).iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_next_run_continues(number, smoke, uninterrupted, tmp_path, monkeypatch):
    original = Method.training_step

    def asked(self, batch, batch_index=0):
        if batch["step"] == 13:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_index)

    monkeypatch.setattr(Method, "training_step", asked)
    with pytest.raises(Stopped, match="stopped at step 14 of 24; run the same command to continue") as stopped:
        train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path))
    assert stopped.value.code == 128 + number
    monkeypatch.undo()
    assert same_weights(train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path)), uninterrupted)


def killed(command: list[str], out: Path, **options) -> Path:
    """Runs a training, kills all of its processes after the first checkpoint, and returns its folder."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("trainings/*/checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder,) = out.glob("trainings/*")
    assert not layout.is_trained(folder), "it was killed in time"
    return folder


def test_what_was_killed_continues(smoke, uninterrupted, tmp_path):
    """The real command, with all of its processes."""
    command = [sys.executable, "-m", "benchmark", "train", "extrapolation", *SETTINGS, "--protocol", "smoke"]
    folder = killed([*command, "--out", str(tmp_path), "--every-steps", "3"], tmp_path)
    assert train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path)) == folder
    assert same_weights(folder, uninterrupted)


def test_shards_may_lie_elsewhere(smoke, uninterrupted, tmp_path, monkeypatch):
    """Behind a URL or a command, read through a cache."""
    monkeypatch.chdir(tmp_path)  # runs/cache
    (local,) = (path.parent for path in uninterrupted.parents[1].glob("data/*/manifest.json"))
    far = f"pipe:cat {local}/{{}}"
    where = Run(tmp_path / "out", far, "1", 1)
    found = {stage.kind: stage for stage in stages.graph(smoke, ["extrapolation"], 0, where)}
    assert found["shards"].is_complete()
    assert found["train"].folder.name == uninterrupted.name
    assert same_weights(train.train(Training(smoke, "extrapolation", "16x16", 0), where), uninterrupted)
    assert reference.open_source(far).hash == reference.open_source(local).hash
    assert not (tmp_path / "out" / "data").exists()


def test_a_signal_in_the_last_step_ends_what_would_follow(smoke, uninterrupted, tmp_path, monkeypatch):
    original = Method.training_step

    def asked(self, batch, batch_index=0):
        if batch["step"] == STEPS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_index)

    monkeypatch.setattr(Method, "training_step", asked)
    with pytest.raises(Stopped, match="stopped after the last step") as stopped:
        train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path))
    assert stopped.value.code == 128 + signal.SIGTERM
    (folder,) = tmp_path.glob("trainings/*")
    assert layout.is_trained(folder)
    assert same_weights(folder, uninterrupted)


def test_another_seed_or_option_is_another_training(smoke, uninterrupted):
    key = uninterrupted.name.rpartition("-")[2]
    shards = json.loads(next(uninterrupted.parents[1].glob("data/*/manifest.json")).read_text())["fingerprint"]
    assert Training(smoke, "extrapolation", "16x16", 0).key(shards) == key
    assert Training(smoke, "extrapolation", "16x16", 1).key(shards) != key
    assert Training(smoke, "nope", "16x16", 0).key(shards) != key
    warmer = dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, warmup=3))
    assert Training(warmer, "extrapolation", "16x16", 0).key(shards) != key
    sampled = dataclasses.replace(smoke, sample=dataclasses.replace(smoke.sample, guidance=7.0))
    assert Training(sampled, "extrapolation", "16x16", 0).key(shards) == key


def test_throughput_and_utilisation_are_logged(smoke, tmp_path, monkeypatch, capsys):
    """MFU = images a second x three forwards of the core, as torch counts them, over the device's peak."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(callbacks, "peak_flops", lambda device, precision: 1e9)
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    longer = dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, steps=100))
    folder = train.train(Training(longer, "extrapolation", "16x16", 0), run(tmp_path))
    log = EventAccumulator(str(folder / "log")).Reload()
    speed, used, loss = (log.Scalars(name)[-1].value for name in ("images_per_second", "mfu", "loss"))
    method = registry.build("extrapolation", longer, "16x16", 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.predict(
            torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.int64), method.encoding((4, 4)), None
        )
    assert speed > 0
    assert not json.loads((folder / train.REPORT).read_text())["compiled"]
    assert loss == pytest.approx(json.loads((folder / train.REPORT).read_text())["loss"], rel=1e-5)
    assert used == pytest.approx(speed * 3 * counter.get_total_flops() / 1e9, rel=1e-5)
    assert "mfu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA H200", 989),
     ("NVIDIA H100 PCIe", None), ("NVIDIA GH200 480GB", None), ("NVIDIA GB200", None), ("NVIDIA GeForce RTX 4090 D", None),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("Tesla T4", None)],
)  # fmt: skip
def test_devices_are_recognised(name, expected):
    found = flops.recognised(name)
    assert (found and found.bf16) == expected


def test_nan_loss_names_step_and_samples(smoke, tmp_path, monkeypatch):
    original = Method.training_step

    def poisoned(self, batch, batch_index=0):
        return original(self, batch, batch_index) * (math.nan if batch["step"] == 6 else 1.0)

    monkeypatch.setattr(Method, "training_step", poisoned)
    with pytest.raises(UserError, match=r"the loss is nan at step 6; samples of the batch: .+"):
        train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path, every_steps=7))
    folder = next(tmp_path.glob("trainings/*"))
    assert not list(folder.glob("checkpoints/*.ckpt")), "a loss that is not a number must not be saved"


def test_weights_of_another_method_or_truncated(smoke, uninterrupted, tmp_path):
    other = registry.build("ledit", smoke, "16x16", 0)
    with pytest.raises(UserError, match=r"another method or core: missing: stem"):
        train.load_weights(other, uninterrupted)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / train.REPORT).write_bytes((uninterrupted / train.REPORT).read_bytes())
    (broken / train.WEIGHTS).write_bytes((uninterrupted / train.WEIGHTS).read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        train.load_weights(registry.build("extrapolation", smoke, "16x16", 0), broken)


def test_weights_of_another_training(smoke, uninterrupted, tmp_path):
    """A file that fits, but is not what the report beside it says."""
    other = train.train(Training(smoke, "extrapolation", "16x16", 1), run(tmp_path))
    (other / train.WEIGHTS).write_bytes((uninterrupted / train.WEIGHTS).read_bytes())
    method = registry.build("extrapolation", smoke, "16x16", 1)
    with pytest.raises(UserError, match="holds the weights of extrapolation 16x16 seed 0, not those of training"):
        train.load_weights(method, other)
    with pytest.raises(UserError, match="belongs to another training"):
        train.load_weights(registry.build("extrapolation", smoke, "16x16", 0), uninterrupted, key="0" * 12)


def test_one_training_at_a_time_in_a_folder(tmp_path):
    with train.exclusive(tmp_path):
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / f".step=3.ckpt.{files._here()}~99999999.x.part").mkdir()
        with pytest.raises(UserError, match="another process is training in"), train.exclusive(tmp_path):
            pass
    with train.exclusive(tmp_path):
        assert not list(tmp_path.glob("**/.*.part")), "drafts of a killed run are swept"


def test_a_failed_training_gives_the_signals_back(smoke, tmp_path, monkeypatch):
    """Or the stages after it would not hear Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(Method, "training_step", lambda self, batch, batch_index=0: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(UserError, match="the loss is nan"):
        train.train(Training(smoke, "extrapolation", "16x16", 0), run(tmp_path))
    assert {number: signal.getsignal(number) for number in before} == before


def test_checkpoints_are_complete_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "step=3.ckpt"
    Atomic().save_checkpoint({"global_step": 3}, path)
    assert torch.load(path, weights_only=True) == {"global_step": 3}

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Atomic().save_checkpoint({"global_step": 4}, tmp_path / "step=4.ckpt")
    assert [found.name for found in tmp_path.iterdir()] == ["step=3.ckpt"]


def test_two_processes_train_as_one_and_resume_exactly(uninterrupted, tmp_path):
    """Two gloo processes take the same global batch and the same noise as one; only the order of sums differs.

    Killed and run again, they end in the same bits.
    """
    command = [sys.executable, "-m", "benchmark", "train", "extrapolation", *SETTINGS, "--protocol", "smoke", "--devices", "2"]
    command += ["--every-steps", "4", "--keep"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "capture_output": True, "env": environment, "text": True, "timeout": 600}
    complete, again = tmp_path / "complete", tmp_path / "again"
    result = subprocess.run([*command, "--out", str(complete)], **options)
    assert result.returncode == 0, result.stderr
    together = next(complete.glob("trainings/*"))
    one, two = (load_file(folder / train.WEIGHTS) for folder in (uninterrupted, together))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=2e-4)
    told = [json.loads((folder / train.REPORT).read_text()) for folder in (together, uninterrupted)]
    for name in ("loss", "lowest"):  # of the global batch, and not of the first process' half
        assert told[0][name] == pytest.approx(told[1][name], rel=1e-3)
    command += ["--out", str(again)]
    folder = killed(command, again, env=environment)
    result = subprocess.run(command, **options)
    assert result.returncode == 0, result.stderr
    assert "continuing from step" in result.stdout
    assert same_weights(folder, together)
    assert all(torch.equal(value, final_raw(together)[key]) for key, value in final_raw(folder).items())


def test_a_signal_to_one_of_two_processes_ends_both_at_the_same_step(tmp_path):
    command = [sys.executable, "-m", "benchmark", "train", "extrapolation", "train.steps=100000", "--protocol", "smoke"]
    command += ["--devices", "2", "--every-steps", "16", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("trainings/*/checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)  # the other one is told by the first
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, errors
    found = re.search(r"stopped at step (\d+) of 100000; run the same command to continue", errors)
    assert found, errors
    newest, before = (layout.step_of(path) for path in layout.saved(next(tmp_path.glob("trainings/*/checkpoints"))))
    assert newest == int(found[1])
    assert before % 16 == 0


def test_interrupted_shards_need_room_for_the_rest_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(needs, "check_disk", lambda size, what, folder: asked.append(size))
    smoke, run = protocol.load("smoke"), Run(tmp_path)
    folder = Path(DataSet(smoke, run).folder)
    folder.mkdir(parents=True)
    (folder / "shard-00000.tar").write_bytes(b"a" * 1000)
    with pytest.raises(UserError, match="tars from elsewhere"):  # no shards of this source, but asked before
        train.prepared(smoke, run)
    assert asked == [DataSet(smoke, Run(tmp_path / "elsewhere")).picture_bytes * 64 - 1000]
