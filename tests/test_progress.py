"""Who tells what is going on."""

from __future__ import annotations

import io

import pytest
import rich
from rich.console import Console

from benchmark import progress


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),  # started by Lightning
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_one_process_speaks_for_all(variables, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert progress.first_rank() == first


def test_a_second_pass_has_its_own_speed(monkeypatch):
    """A reference of 100 images in 50 seconds, then 20 samples in 2: its time is none of the samples'."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stage = progress.Stage("features", 1, "image")
    now = 50.0
    stage.report(100, 100)
    assert stage.speed == 2
    now = 52.0
    stage.report(20, 200)
    assert (stage.speed, stage.left) == (10, 18)


def test_a_title_is_no_markup(monkeypatch):
    """It may hold the name of a folder."""
    shown = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=shown, force_terminal=True, width=120))
    live = progress.Live("reference real[/x]", 2, "image")
    live.open()
    live.advance(figures="[/y]")
    live.bars.stop()
    assert "reference real[/x]" in shown.getvalue()
    assert "[/y]" in shown.getvalue()
