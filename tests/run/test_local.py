"""Stages one after another: what fails takes along only what needs it."""

from __future__ import annotations

import errno

import pytest

from benchmark import protocol
from benchmark.files import Stopped, UserError
from benchmark.plan.place import Run
from benchmark.plan.stages import Sample, Stage, Train, graph
from benchmark.run import local
from benchmark.run.local import Job


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


def test_cells_of_one_checkpoint_wait_for_the_first(tmp_path, monkeypatch):
    """They may share its images; those of others go on."""
    started: list[list[Job]] = []
    monkeypatch.setattr(local, "side_by_side", lambda jobs, run: started.append(list(jobs)))
    monkeypatch.setattr(local, "run_one", lambda stage: None)
    names, run = ["yarn", "ntk", "extrapolation", "nope"], Run(tmp_path)
    local.run_in_parallel(graph(protocol.load("smoke"), names, 3, run), names, 3, run)
    trainings, cells = started
    assert {job.words[job.words.index("--seed") + 1] for job in trainings + cells} == {"3"}
    assert sorted(job.title for job in trainings) == ["train extrapolation at 16x16", "train nope at 16x16"]
    assert all(job.words[-2:] == ["--workers", "1"] for job in trainings), "a decoder each, not half of the processors"
    waits = {job.title: job.after for job in cells}
    first = {"nope": "cells of nope"}
    assert waits == {f"cells of {name}": first.get(name, "cells of extrapolation") for name in names}


def test_a_stage_that_breaks_beforehand_leaves_the_trainings_alone(tmp_path, monkeypatch, capsys):
    """But for what would meet them as well; and it is told before the trainings, which may take days."""
    tried, started = [], []

    def broken(stage: Stage) -> None:
        tried.append(stage.kind)
        raise error

    monkeypatch.setattr(local, "run_one", broken)
    monkeypatch.setattr(local, "side_by_side", lambda jobs, run: started.append(len(jobs)))
    run = Run(tmp_path)
    stages = graph(protocol.load("smoke"), ["nope"], 0, run)
    error: BaseException = RuntimeError("a fault in the detector")
    local.run_in_parallel(stages, ["nope"], 0, run)
    assert (set(tried), started) == ({"shards", "reference"}, [1, 1])
    assert "failed: reference 64 of shapes at 32x24: RuntimeError: a fault in the detector" in capsys.readouterr().out
    for error in (Stopped("stopped"), OSError(errno.ENOSPC, "No space left on device")):
        tried.clear()
        with pytest.raises(type(error)):
            local.run_in_parallel(stages, ["nope"], 0, run)
        assert (tried, started) == (["shards"], [1, 1])


def test_jobs_run_side_by_side_and_each_has_its_output(tmp_path):
    """One that fails leaves the one that waits for it its turn: what it lacks is said when the stages are walked."""
    local.side_by_side([Job("a", ["--version"]), Job("b", ["nosuch"], "b"), Job("c", ["--version"], "b")], tmp_path / "log")
    said = {path.stem: path.read_text() for path in (tmp_path / "log").glob("*.txt")}
    assert said.keys() == {"a", "b", "c"}
    assert "posbench" in said["a"]
    assert "nosuch" in said["b"]
    assert "posbench" in said["c"]


@pytest.mark.parametrize("code", [130, -15, 3])
def test_a_stage_on_several_devices_ends_as_its_processes_do(code, tmp_path, monkeypatch):
    stage = next(
        found for found in graph(protocol.load("smoke"), ["nope"], 0, Run(tmp_path, devices="2")) if found.kind == "train"
    )
    monkeypatch.setattr(local, "run_group", lambda words: code)
    with pytest.raises(UserError if code == 3 else Stopped) as ended:
        local.run_one(stage)
    if code == 3:
        assert "on 2 devices ended with exit code 3" in str(ended.value)
    else:
        assert ended.value.code == {130: 130, -15: 143}[code]


def test_what_does_not_fit_into_memory_is_advised(tmp_path, monkeypatch):
    for stage in graph(protocol.load("smoke"), ["nope"], 0, Run(tmp_path)):
        if stage.kind in ("train", "sample"):
            error = RuntimeError("CUDA out of memory. Tried to allocate 20 GiB\nmore")
            monkeypatch.setattr(type(stage), "run", lambda self, error=error: (_ for _ in ()).throw(error))
            advice = "use more devices" if stage.kind == "train" else "sample.batch is part of the protocol"
            with pytest.raises(UserError, match=f"out of memory .CUDA out of memory. Tried to allocate 20 GiB.; {advice}"):
                local.run_one(stage)
