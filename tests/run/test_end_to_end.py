"""The main job on the smoke contest, through the real commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmark import protocol
from benchmark.__main__ import main
from benchmark.files import ROOT, UserError
from benchmark.identity import Cell
from benchmark.model import checkpoint
from benchmark.run import local
from benchmark.run.train import WEIGHTS, Run
from benchmark.run.train import train as fit

pytestmark = pytest.mark.xdist_group("end to end")  # most of them share the folder of one run


def command(*arguments: str, out: Path | None = None) -> subprocess.CompletedProcess:
    """Runs `python -m benchmark ...` as a person would."""
    where = ["--out", str(out)] if out else []
    return subprocess.run(
        [sys.executable, "-m", "benchmark", *arguments, *where], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(out) -> subprocess.CompletedProcess:
    return command("bench", "rpe2d", "--protocol", "smoke", out=out)


def test_bench_goes_through_every_stage(first, out):
    assert first.returncode == 0, first.stderr
    rules = protocol.load("smoke")
    for stage in ("shards shapes", "train rpe2d", "sample rpe2d", "reference shapes", "score rpe2d"):
        assert stage in first.stdout
    assert "RPE-2D" in first.stdout  # the table at the end
    records = sorted((out / "records").rglob("*.json"))
    assert [path.name for path in records] == sorted(f"{a}-{b}-s0.json" for a, b in rules.pairs())
    for path in records:
        record = json.loads(path.read_text())
        assert record["protocol"] == {"name": "smoke", "hash": rules.hash}
        assert record["count"] == rules.sample.count
        assert record["scores"]["fid"]["value"] > 0
        assert record["scores"]["is"]["value"] >= 1
    for _, test in rules.pairs():
        (cell,) = out.glob(f"cells/smoke/rpe2d-16x16-{test}-s0-*")
        height, width = protocol.size_hw(test)
        chunks = [np.load(path) for path in sorted(cell.glob("chunks/*.npy"))]
        assert sum(map(len, chunks)) == rules.sample.count
        assert all(chunk.shape[1:] == (height, width, 3) and chunk.dtype == np.uint8 for chunk in chunks)
        grid = Image.open(cell / "grid.png")
        assert grid.size == (8 * width + 7 * 2, 4 * height + 3 * 2)
    assert not list(out.rglob("*.part")), "a draft was left behind"


def test_nothing_is_written_into_the_leaderboards_by_an_unranked_contest(first):
    assert not (ROOT / "leaderboards" / "records" / "smoke").exists()


def test_second_run_skips_everything(first, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("chunk-*.npy")}
    again = command("bench", "rpe2d", "--protocol", "smoke", out=out)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("whole already, skipped") == 2 + 2 * 3  # shards, training; samples and scores of three cells
    assert {path: path.stat().st_mtime_ns for path in out.rglob("chunk-*.npy")} == before


def test_an_interrupted_cell_continues_with_the_same_images(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-32x24-s0-*")
    whole = {path.name: path.read_bytes() for path in cell.glob("chunks/*.npy")}
    (cell / "samples.json").unlink()
    (cell / "chunks" / "chunk-00001.npy").unlink()
    again = command("sample", "rpe2d", "--protocol", "smoke", "--test", "32x24", out=out)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in cell.glob("chunks/*.npy")} == whole


def test_a_lost_chunk_is_drawn_again_and_a_cell_without_it_is_not_scored(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-16x16-s0-*")
    whole = (cell / "chunks" / "chunk-00001.npy").read_bytes()
    (cell / "chunks" / "chunk-00001.npy").unlink()
    rules, run = protocol.load("smoke"), Run(out)
    marks = {path: path.read_bytes() for path in cell.glob("record-*.json")}
    for path in marks:
        path.unlink()
    with pytest.raises(UserError, match="holds 16 images of 32: sample the cell again"):
        local.score(rules, Cell("rpe2d", "16x16", "16x16", 0), cell, run)
    assert not list(cell.glob("record-*.json")), "a failure of the disk is no result"
    for path, content in marks.items():
        path.write_bytes(content)
    local.sample(rules, Cell("rpe2d", "16x16", "16x16", 0), run)
    assert (cell / "chunks" / "chunk-00001.npy").read_bytes() == whole


def test_a_failed_score_is_told_each_time(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-16x16-s0-*")
    (path,) = cell.glob("record-*.json")
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content) | {"scores": None}))
    with pytest.raises(UserError, match=r"failed when it was scored; remove .* to score it again"):
        local.score(protocol.load("smoke"), Cell("rpe2d", "16x16", "16x16", 0), cell, Run(out))
    path.write_text(content)
    local.score(protocol.load("smoke"), Cell("rpe2d", "16x16", "16x16", 0), cell, Run(out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_processes_of_a_stage_which_save(number, tmp_path):
    child = "import signal, sys, time\n"
    child += f"signal.signal({int(number)}, lambda *_: (print('saved', flush=True), sys.exit(7)))\n"
    child += "print('ready', flush=True)\ntime.sleep(60)"
    parent = f"import sys; from benchmark.run.local import follow; sys.exit(follow([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 7


def test_two_processes_draw_the_same_images(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-32x32-s0-*")
    whole = {path.name: path.read_bytes() for path in cell.glob("chunks/*.npy")}
    (cell / "samples.json").unlink()
    for path in cell.glob("chunks/*.npy"):
        path.unlink()
    again = command("sample", "rpe2d", "--protocol", "smoke", "--test", "32x32", "--devices", "2", out=out)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in cell.glob("chunks/*.npy")} == whole


def test_sweep_trains_shared_checkpoints_once_and_custom_runs_stay_apart(out):
    result = command(
        "sweep", "train.steps=2", "sample.count=16", "--protocol", "smoke", "--methods", "extrapolation,yarn,ntk", out=out
    )
    assert result.returncode == 0, result.stderr
    rules = protocol.load("smoke", ["train.steps=2", "sample.count=16"])
    assert result.stdout.count("train extrapolation 16x16 seed 0") == 1
    records = list((out / "records" / rules.hash).rglob("*.json"))
    assert len(records) == 9
    scores = {
        path.parent.name: json.loads(path.read_text())["scores"]["fid"]["value"] for path in records if "16x16-16x16" in path.name
    }
    assert scores["yarn"] == scores["ntk"] == scores["extrapolation"], "at the training size they are one model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "rope2d"], "unknown method 'rope2d'; did you mean 'rpe2d'? (there are: "),
        (["bench", "rpe2d", "--protocol", "shapez"], "unknown protocol 'shapez'; did you mean 'shapes'?"),
        (["bench", "rpe2d", "train.stepz=3"], "unknown setting 'train.stepz'; did you mean 'train.steps'?"),
        (
            ["bench", "rpe2d", "options.rpe2d.hmax=3", "--protocol", "smoke"],
            "unknown option of RPE-2D 'hmax'; did you mean 'h_max'?",
        ),
        (["sample", "rpe2d", "--protocol", "smoke", "--test", "99x99"], "smoke has no cell * -> 99x99 (there are: 16x16 -> "),
        (["train", "rpe2d", "--protocol", "smoke", "--data", "no/such/folder"], "DATA must stay empty"),
        (["train", "rpe2d", "--protocol", "smoke", "--devices", "many"], "DEVICES is 'auto' or a number"),
        (["sample", "nope", "--protocol", "smoke"], "nope is not trained at 16x16 with seed 0"),
        (["train", "nope", "options.rpe2dd.x=1", "--protocol", "smoke"], "unknown method 'rpe2dd'; did you mean 'rpe2d'?"),
        (["train", "nope", "--protocol", "smoke", "score.detector=shape"], "unknown score.detector 'shape'; did you mean"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    # In this process: what `python -m benchmark` calls, without importing torch once a case.
    monkeypatch.setattr(sys, "argv", ["python -m benchmark", *arguments, "--out", str(tmp_path)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    errors = capsys.readouterr().err.strip()
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 0, errors
    assert not list(tmp_path.glob("trainings/**/*.safetensors"))


def test_a_place_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["benchmark", "train", "nope", "--protocol", "smoke", "--out", str(tmp_path / "file")])
    assert main() == 2
    assert capsys.readouterr().err.strip().endswith("Not a directory")


def test_weights_leave_in_the_published_layout(out, capsys, monkeypatch):
    """What goes out is what a core takes in."""
    rules, file = protocol.load("smoke"), out / "core.safetensors"
    trained = fit(rules, "extrapolation", "16x16", 0, Run(out))
    monkeypatch.setattr(sys, "argv", ["benchmark", "weights", "yarn", str(file), "--protocol", "smoke", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    state = checkpoint.load_core(file)
    own = {key.removeprefix("core."): value for key, value in load_file(trained / WEIGHTS).items()}
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)


def test_list_shows_methods_protocols_and_data_sets(out, first):
    result = command("list", out=out)
    assert result.returncode == 0, result.stderr
    for word in ("rpe2d", "extrapolation", "smoke", "shapes", "methods", "protocols", "data sets"):
        assert word in result.stdout
