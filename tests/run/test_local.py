"""Stages one after another: what fails takes along only what needs it."""

from __future__ import annotations

import pytest

from benchmark import protocol
from benchmark.files import Stopped, UserError
from benchmark.plan.place import Run
from benchmark.plan.stages import Sample, Stage, Train, graph
from benchmark.run import local


def stages_of(tmp_path) -> list[Stage]:
    return graph(protocol.load("smoke"), ["yarn", "sincos"], 0, Run(tmp_path))


def failing(monkeypatch, error: Exception) -> list[Stage]:
    """Fails the training that YaRN uses; returns a list that fills with the stages that ran."""
    ran: list[Stage] = []

    def run_one(stage: Stage) -> None:
        if isinstance(stage, Train) and stage.training.method == "extrapolation":
            raise error
        ran.append(stage)

    monkeypatch.setattr(local, "run_one", run_one)
    return ran


@pytest.mark.parametrize(
    ("error", "reason", "traced"),
    [
        (UserError("the loss is nan"), "the loss is nan", False),
        (TypeError("encode() takes\n2 arguments"), "TypeError: encode() takes 2 arguments", True),
        (RuntimeError("CUDA error: an illegal memory access"), "RuntimeError: CUDA error: an illegal memory access", True),
        (FileNotFoundError(2, "No such table"), "FileNotFoundError: [Errno 2] No such table", True),
    ],
)
def test_a_method_that_fails_leaves_the_others_alone(error, reason, traced, monkeypatch, tmp_path, capsys):
    stages = stages_of(tmp_path)
    ran = failing(monkeypatch, error)
    ((failed, told),) = local.run_all(stages)
    assert (failed.kind, told) == ("train", reason)
    output = capsys.readouterr()
    assert f"failed: {failed}: {reason}" in output.out + output.err
    assert ("Traceback" in output.err) == traced, "the method's author needs to see where"
    assert {stage.cell.method for stage in ran if stage.kind == "score"} == {"sincos"}
    assert {stage.training.method for stage in ran if stage.kind == "train"} == {"sincos"}
    with pytest.raises(UserError, match="1 stage failed: "):
        local.raise_for([(failed, told)])


def test_the_images_that_methods_share_are_made_by_the_next_if_the_first_fails(monkeypatch, tmp_path):
    stages = graph(protocol.load("smoke"), ["yarn", "ntk"], 0, Run(tmp_path))
    ran: list[Stage] = []

    def run_one(stage: Stage) -> None:
        if isinstance(stage, Sample) and stage.cell.method == "yarn":
            raise ValueError("a fault of this method")
        ran.append(stage)

    monkeypatch.setattr(local, "run_one", run_one)
    failures = local.run_all(stages)
    assert {stage.cell.method for stage, _ in failures} == {"yarn"}
    scored = [stage.cell.test for stage in ran if stage.kind == "score"]
    assert len(scored) == len(protocol.load("smoke").pairs())
    assert "16x16" in scored


@pytest.mark.parametrize(
    "error",
    [
        Stopped("stopped"),
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
        NotADirectoryError(20, "no"),
    ],
)
def test_a_stop_and_a_full_disk_end_everything(error, monkeypatch, tmp_path):
    stages = stages_of(tmp_path)
    ran = failing(monkeypatch, error)
    with pytest.raises(type(error)):
        local.run_all(stages)
    assert not [stage for stage in ran if stage.kind == "score"]
