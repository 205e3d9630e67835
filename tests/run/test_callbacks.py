"""What a training tells while it runs, and when it is saved."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmark.files import UserError
from benchmark.plan.layout import saved
from benchmark.progress import Stage
from benchmark.run import callbacks
from benchmark.run.callbacks import Keeper, Watch


def read(watch: Watch, *losses: float) -> None:
    watch.pending = [(step, torch.tensor(loss), ["sample"]) for step, loss in enumerate(losses)]
    watch.read()


def test_a_loss_that_rises_is_told_once_a_rise(capsys: pytest.CaptureFixture) -> None:
    watch = Watch(Stage("train", 10, "step"), "key")
    read(watch, *[0.2] * 300, *[0.3] * 300)  # 1.5 times the lowest: noise
    assert capsys.readouterr().out == ""
    read(watch, 400.0, 90.0, *[0.2] * 200)
    shown = capsys.readouterr().out
    assert shown.count("unstable") == 1
    assert "from 0.2000 to 4." in shown
    assert "at step 0" in shown
    read(watch, *[0.2] * 2000)
    read(watch, 400.0)
    assert capsys.readouterr().out.count("unstable") == 1  # it had calmed down: this is another one


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(UserError, match="the loss is nan at step 1; samples of the batch: sample"):
        read(Watch(Stage("train", 10, "step"), "key"), 0.1, float("nan"))


def test_what_is_saved_knows_the_losses_that_were_not_read_yet() -> None:
    """Lightning takes a callback's state before it tells of saving."""
    watch = Watch(Stage("train", 10, "step"), "key")
    read(watch, *[1.0] * 10)
    watch.pending = [(10 + step, torch.tensor(0.5), ["sample"]) for step in range(3)]
    state = watch.state_dict()
    assert state["loss"] == pytest.approx(0.5 + 0.5 * 0.99**3)
    assert state["lowest"] == state["loss"]


class Clock:
    """Stands for `time`: it goes on when told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Ranks:
    """Stands for a trainer with several ranks: what the others want decides; saving takes `seconds`."""

    def __init__(self, folder: Path, clock: Clock, world: int = 1, seconds: float = 0.0) -> None:
        self.folder, self.clock, self.world_size, self.seconds = folder, clock, world, seconds
        self.global_step, self.is_global_zero, self.should_stop = 0, True, False
        self.others, self.agreed, self.broken = Keeper.nothing, [], 0.0
        self.starts = [0]  # the steps from which ranks start
        self.strategy = SimpleNamespace(
            reduce=self.reduce, all_gather=lambda mine: torch.tensor(self.starts), root_device=torch.device("cpu")
        )
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace())

    def reduce(self, own: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        if not own.dim():  # whether a loss is no number
            return own.clamp(min=self.broken)
        self.agreed.append(self.global_step)
        return torch.maximum(own, torch.tensor([float(self.others), 0.0]))

    def save_checkpoint(self, path: Path) -> None:
        path.touch()
        self.clock.now += self.seconds

    def steps(self, keeper: Keeper, count: int, seconds: float, last: int = 10**6) -> list[int]:
        """Goes on for `count` steps and returns those at which a checkpoint was added."""
        module = SimpleNamespace(protocol=SimpleNamespace(train=SimpleNamespace(steps=last)), device="cpu")
        saved = []
        for _ in range(count):
            before = set(self.folder.iterdir())
            self.global_step += 1
            self.clock.now += seconds
            keeper.on_train_batch_end(self, module, {"loss": torch.tensor(0.1)}, None, 0)
            saved += [self.global_step] if set(self.folder.iterdir()) - before else []
        return saved


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(callbacks, "time", clock)
    return clock


def test_a_training_that_goes_on_adds_the_seconds_of_each_of_its_devices(clock: Clock) -> None:
    watch, compiled = Watch(Stage("train", 10, "step"), "key"), Watch(Stage("train", 10, "step"), "key", compiled=True)
    state = {"seconds": 100.0, "loss": 0.5, "lowest": 0.4, "skipped": 3, "compiled": True}
    watch.load_state_dict(state)
    watch.devices, clock.now = 4, 10.0
    assert watch.state_dict() == state | {"seconds": 140.0}
    compiled.load_state_dict(state | {"compiled": False})
    assert compiled.state_dict()["compiled"], "now, if not before"


def started(keeper: Keeper, trainer: Ranks) -> Keeper:
    keeper.on_train_start(trainer, None)
    keeper.restore()  # the handlers of signals, which the tests ask themselves
    return keeper


def test_ranks_that_start_from_different_steps_do_not_start(tmp_path: Path, clock: Clock) -> None:
    """As where OUT lies on a disk of each node: they would wait for each other for ever."""
    trainer = Ranks(tmp_path, clock, world=2)
    trainer.starts = [14, 0]
    with pytest.raises(UserError, match=r"different steps \(0, 14\): is OUT on a disk that all nodes share"):
        started(Keeper(tmp_path, 8, 60), trainer)
    trainer.starts = [14, 14]
    started(Keeper(tmp_path, 8, 60), trainer)


def test_the_last_two_checkpoints_stay(tmp_path: Path, clock: Clock) -> None:
    trainer = Ranks(tmp_path, clock)
    keeper = started(Keeper(tmp_path, every_steps=8, every_minutes=60), trainer)
    assert trainer.steps(keeper, 104, seconds=1) == list(range(8, 105, 8))
    assert [path.name for path in saved(tmp_path)] == ["step=104.ckpt", "step=96.ckpt"]


def test_saving_takes_at_most_its_share_of_the_time(tmp_path: Path, clock: Clock) -> None:
    quick = Ranks(tmp_path, clock)
    assert quick.steps(started(Keeper(tmp_path, 10**6, 2), quick), 400, seconds=1) == [120, 240, 360]
    slow = Ranks(tmp_path, clock, seconds=20)  # XL/2 on a network disk
    slow.global_step = 1000
    saved = slow.steps(started(Keeper(tmp_path, 10**6, 2), slow), 3000, seconds=1)
    assert saved == [1120, 2120, 3120]


@pytest.mark.parametrize("urgent", [Keeper.save, Keeper.end])
def test_ranks_save_and_end_at_the_same_step(urgent: int, tmp_path: Path, clock: Clock) -> None:
    trainer = Ranks(tmp_path, clock, world=8)
    keeper = started(Keeper(tmp_path, 10**6, 2), trainer)
    assert trainer.steps(keeper, 50, seconds=0.1) == []
    assert trainer.agreed == [1, 17, 33, 49], "they wait for each other every 16 steps only"
    trainer.others = urgent  # of another rank: this one was not asked
    assert trainer.steps(keeper, 15, seconds=0.1) == [65]
    assert (keeper.stopped, trainer.should_stop) == (urgent == Keeper.end,) * 2


def test_ranks_whose_steps_are_slow_agree_sooner(tmp_path: Path, clock: Clock) -> None:
    """A scheduler gives a minute's notice: 16 steps of a large core may take longer."""
    trainer = Ranks(tmp_path, clock, world=8)
    keeper = started(Keeper(tmp_path, 10**6, 60), trainer)
    trainer.steps(keeper, 3, seconds=5)
    trainer.steps(keeper, 12, seconds=0.7)
    assert trainer.agreed == [1, 2, 3, 4, 8, 12]


def test_a_rank_does_not_save_where_the_loss_of_another_is_no_number(tmp_path: Path, clock: Clock) -> None:
    trainer = Ranks(tmp_path, clock, world=2)
    keeper = started(Keeper(tmp_path, 4, 60), trainer)
    assert trainer.steps(keeper, 4, seconds=1) == [4]
    trainer.broken = 1.0
    with pytest.raises(UserError, match="the loss of another process is not a number"):
        trainer.steps(keeper, 4, seconds=1)
    assert [path.name for path in saved(tmp_path)] == ["step=4.ckpt"]


def test_a_checkpoint_of_a_later_step_does_not_take_the_place_of_a_new_one(tmp_path: Path, clock: Clock) -> None:
    for step in (300, 290):
        (tmp_path / f"step={step}.ckpt").touch()
    trainer = Ranks(tmp_path, clock)
    trainer.global_step = 200
    assert trainer.steps(started(Keeper(tmp_path, 8, 60), trainer), 32, seconds=1) == [200 + 8 * k for k in range(1, 5)]
    assert [path.name for path in saved(tmp_path)] == [f"step={step}.ckpt" for step in (300, 290, 232, 224)]


def test_a_signal_ends_a_single_process_at_once_and_none_the_last_step(tmp_path: Path, clock: Clock) -> None:
    for last, expected in ((10, [4]), (4, [])):
        trainer = Ranks(tmp_path, clock)
        keeper = Keeper(tmp_path, 10**6, 2)
        keeper.on_train_start(trainer, None)
        assert trainer.steps(keeper, 3, seconds=1, last=last) == []
        os.kill(os.getpid(), signal.SIGTERM)
        keeper.restore()
        assert trainer.steps(keeper, 1, seconds=1, last=last) == expected
        assert keeper.stopped == bool(expected)
        assert keeper.asked == signal.SIGTERM
        for path in tmp_path.iterdir():
            path.unlink()
