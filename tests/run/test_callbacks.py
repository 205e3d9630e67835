"""What a training tells while it runs."""

from __future__ import annotations

import pytest
import torch

from benchmark.files import UserError
from benchmark.progress import Stage
from benchmark.run.callbacks import Watch


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
