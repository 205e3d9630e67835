"""The main job on the smoke protocol, through the real commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from benchmark import progress, protocol, registry
from benchmark.__main__ import app, main
from benchmark.data.batches import Batches, Transform
from benchmark.data.index import Index
from benchmark.evaluate.samples import read_chunk
from benchmark.files import ROOT, UserError
from benchmark.identity import Cell, Training
from benchmark.measure import levels
from benchmark.model import checkpoint
from benchmark.model.autoencoder import to_uint8
from benchmark.model.encoding import Encoding
from benchmark.model.method import Method
from benchmark.model.precision import has_bf16
from benchmark.plan import stages
from benchmark.plan.layout import REPORT, WEIGHTS
from benchmark.plan.place import Run
from benchmark.plan.stages import Stage
from benchmark.results import record
from benchmark.run import local, sample
from benchmark.run.train import exclusive
from benchmark.run.train import train as fit

pytestmark = pytest.mark.xdist_group("end to end")  # most of them share the folder of one run


def command(*arguments: str, out: Path) -> subprocess.CompletedProcess:
    """Runs `python -m benchmark ...` as a person would."""
    words = [sys.executable, "-m", "benchmark", *arguments, "--out", str(out)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)


def here(*arguments: str, out: Path) -> None:
    """The same in this process, which has imported torch."""
    app([*arguments, "--out", str(out)], standalone_mode=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(out) -> subprocess.CompletedProcess:
    return command("bench", "rpe2d", "--protocol", "smoke", out=out)


def test_bench_goes_through_every_stage(first, out):
    assert first.returncode == 0, first.stderr
    smoke = protocol.load("smoke")
    for stage in ("shards shapes", "train rpe2d", "sample rpe2d", "reference shapes", "score rpe2d"):
        assert stage in first.stdout
    assert "RPE-2D" in first.stdout  # the table at the end
    records = sorted((out / "records").rglob("*.json"))
    assert [path.name for path in records] == sorted(f"{a}-{b}-s0.json" for a, b in smoke.pairs())
    for path in records:
        record = json.loads(path.read_text())
        assert record["protocol"] == {"name": "smoke", "hash": smoke.hash}
        assert record["count"] == smoke.sample.count
        assert record["scores"]["fid"]["value"] > 0
        assert record["scores"]["is"]["value"] >= 1
    for _, test in smoke.pairs():
        (cell,) = out.glob(f"cells/smoke/rpe2d-16x16-{test}-s0-*")
        height, width = protocol.size_hw(test)
        chunks = [read_chunk(path) for path in sorted(cell.glob("chunks/*.tar"))]
        assert sum(map(len, chunks)) == smoke.sample.count
        assert all(chunk.shape[1:] == (height, width, 3) and chunk.dtype == np.uint8 for chunk in chunks)
        grid = Image.open(cell / "grid.png")
        assert grid.size == (8 * width + 7 * 2, 4 * height + 3 * 2)
    assert not list(out.rglob("*.part")), "a draft was left behind"


def test_nothing_is_written_into_the_leaderboards_by_a_run(first, out):
    assert not (ROOT / "leaderboards" / "records" / "smoke").exists()
    assert not (out / "leaderboards").exists(), "smoke is not ranked"


def test_second_run_skips_everything(first, out, capsys):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("chunk-*.tar")}
    here("bench", "rpe2d", "--protocol", "smoke", out=out)
    assert capsys.readouterr().out.count("already complete, skipped") == 2 + 2 * 3  # shards, training; then three cells
    assert {path: path.stat().st_mtime_ns for path in out.rglob("chunk-*.tar")} == before


def content(cell: Path) -> dict[str, bytes]:
    """The images and the features of a cell."""
    return {path.name: path.read_bytes() for path in [*cell.glob("chunks/*.tar"), *cell.glob("features/*/*.safetensors")]}


def stage_of(method: str, test: str, out: Path, kind: str = "score") -> Stage:
    found = stages.graph(protocol.load("smoke"), [method], 0, Run(out))
    return next(stage for stage in found if stage.kind == kind and stage.cell.test == test)


def test_a_record_of_code_that_has_been_committed_since_is_made_again(first, out, monkeypatch, capsys):
    stage = stage_of("rpe2d", "16x16", out)
    before = json.loads(stage.file.read_text())
    stage.file.write_text(json.dumps(before | {"code": {"commit": None, "dirty": True}}))
    for dirty in (True, False):
        monkeypatch.setattr(record, "git_state", lambda *folders, dirty=dirty: record.GitState("0" * 40, dirty))
        if not dirty:
            assert not stage.is_complete()
        stage.run()
        assert ("already complete, skipped" in capsys.readouterr().out) == dirty
    after = json.loads(stage.file.read_text())
    assert after["code"] == {"commit": "0" * 40, "dirty": False}
    assert after["scores"] == before["scores"]


def test_what_a_cell_has_lost_is_made_again_and_without_it_nothing_is_scored(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-16x16-s0-*")
    complete = content(cell)
    next(cell.glob("features/*/unit-00001.safetensors")).unlink()
    records = {path: path.read_bytes() for path in cell.glob("record-*.json")}
    for path in records:
        path.unlink()
    with pytest.raises(UserError, match=r"unit-00001\.safetensors is missing or belongs to other images"):
        stage_of("rpe2d", "16x16", out).run()
    assert not list(cell.glob("record-*.json")), "a failure of the disk is no result"
    for path, text in records.items():
        path.write_bytes(text)
    (cell / "samples.json").unlink()  # as an interrupted cell, whose first batch is there
    (cell / "chunks" / "chunk-00001.tar").unlink()
    here("sample", "rpe2d", "--protocol", "smoke", "--test", "16x16", out=out)
    assert content(cell) == complete
    again = Cell(protocol.load("smoke"), "rpe2d", "16x16", "16x16", 0), Run(out)
    (cell / "chunks" / "chunk-00000.tar").unlink()
    sample.sample(*again)
    assert content(cell) == complete
    features, chunk = next(cell.glob("features/*/unit-00000.safetensors")), cell / "chunks" / "chunk-00001.tar"
    for damaged in (features, chunk):  # as a disk leaves them
        damaged.write_bytes(damaged.read_bytes()[:40])
        sample.sample(*again)
        assert content(cell) == complete
    for damaged in (features, chunk):
        damaged.write_bytes(b"")
    sample.sample(*again)
    assert content(cell) == complete
    assert (cell / "samples.json").is_file()


def test_a_training_is_looked_at_level_by_level(first, out):
    shown, found = levels.look(["rpe2d"], protocol.load("smoke"), 0, Run(out))
    assert (list(shown.columns[2].cells), found) == (["nowhere"], False)


def test_two_runs_do_not_sample_a_cell_at_once(first, out, monkeypatch):
    """The second waits until the first is done: cells that share their base's images may be jobs of the same moment."""
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-16x16-s0-*")
    (cell / "samples.json").unlink()
    told, first_run = [], contextlib.ExitStack()

    def say(text):
        told.append(text)
        if text.startswith("waiting"):
            first_run.close()

    monkeypatch.setattr(progress, "say", say)
    first_run.enter_context(exclusive(cell, "sampling"))
    sample.sample(Cell(protocol.load("smoke"), "rpe2d", "16x16", "16x16", 0), Run(out))
    assert told[0] == f"waiting for another process, which is sampling in {cell}"
    assert (cell / "samples.json").is_file()


def test_a_failed_score_is_told_each_time(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-16x16-s0-*")
    (path,) = cell.glob("record-*.json")
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"scores": None}))
    with pytest.raises(UserError, match=r"scoring .* failed before; remove .* to score it again"):
        stage_of("rpe2d", "16x16", out).run()
    path.write_text(text)
    stage_of("rpe2d", "16x16", out).run()


def test_only_the_first_images_stay_and_scores_are_the_same(first, out, monkeypatch):
    """Without --keep the first ones; the features, which scores are made of, are those of all. With it the others come back."""
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-16x16-s0-*")
    complete, score = content(cell), stage_of("rpe2d", "16x16", out)
    scores = json.loads(score.file.read_text())["scores"]
    this = Cell(protocol.load("smoke"), "rpe2d", "16x16", "16x16", 0)
    monkeypatch.setattr(stages, "KEPT_IMAGES", 16)
    monkeypatch.setattr(sample, "GRID_IMAGES", 16)
    hidden = cell.rename(out / "hidden")
    sample.sample(this, Run(out))
    assert {path.name for path in cell.glob("chunks/*")} == {"chunk-00000.tar"}
    assert content(cell).items() <= complete.items()
    assert content(cell).keys() == complete.keys() - {"chunk-00001.tar"}
    assert (cell / "grid.png").is_file()
    score.run()
    again = json.loads(score.file.read_text())
    assert again["scores"] == scores
    assert again["hours"]["sample"] > 0
    assert again["count"] == this.protocol.sample.count
    sample.sample(this, Run(out, keep=True))
    assert content(cell) == complete
    shutil.rmtree(cell)
    hidden.rename(cell)


def test_encodings_are_equal_whatever_holds_a_blocks_entries():
    """Biases may be made when they are asked for, as lookhere's are."""

    class Lazy(Sequence):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, block: int) -> torch.Tensor:
            return torch.full((3,), float(range(2)[block]))

    made = [torch.zeros(3), torch.ones(3)]
    assert sample.equal(Encoding(bias=Lazy()), Encoding(bias=Lazy()))
    assert sample.equal(Encoding(bias=Lazy()), Encoding(bias=made))
    assert not sample.equal(Encoding(bias=Lazy()), Encoding(bias=made[::-1]))
    assert sample.equal(Encoding(mask=["causal", None]), Encoding(mask=("causal", None)))
    assert not sample.equal(Encoding(mask=["causal"]), Encoding(mask=["x"]))


def test_methods_of_the_same_encodings_share_images(out, monkeypatch):
    """At the training grid YaRN is the model whose checkpoint it uses; its record is its own."""
    smoke, run = protocol.load("smoke"), Run(out)
    fit(Training(smoke, "extrapolation", "16x16", 0), run)
    at_home = [stage for stage in stages.graph(smoke, ["yarn"], 0, run) if stage.title.startswith("yarn 16x16 -> 16x16")]
    assert local.run_all(at_home) == []
    (yarn,) = out.glob("cells/smoke/yarn-16x16-16x16-s0-*")
    (base,) = out.glob("cells/smoke/extrapolation-16x16-16x16-s0-*")
    assert json.loads((yarn / "samples.json").read_text())["same_as"] == base.name
    assert content(yarn) == {}
    assert len(content(base)) == 4
    own = json.loads((out / "records" / smoke.hash / "smoke/yarn/16x16-16x16-s0.json").read_text())
    assert own["method"]["name"] == "yarn"
    stage_of("extrapolation", "16x16", out).run()
    other = json.loads((out / "records" / smoke.hash / "smoke/extrapolation/16x16-16x16-s0.json").read_text())
    assert own["scores"] == other["scores"]
    assert own["training"]["machine"] == own["hardware"]["name"]
    assert own["training"]["precision"] == own["hardware"]["precision"] == ("bf16" if has_bf16() else "float32")
    assert other["hours"]["sample"] == own["hours"]["sample"] > 0  # what the shared images took
    # It shares where its encodings are the same, and there alone, whatever its grid.
    cells = [Cell(smoke, "yarn", "16x16", test, 0) for test in ("16x16", "32x32", "32x24")]
    assert [sample.same_encodings(cell) for cell in cells] == [True, False, False]
    cls = type(registry.build("yarn", smoke, "16x16", 0))
    encode = cls.encode

    def moved(self, *arguments, **options):
        encoding = encode(self, *arguments, **options)
        return dataclasses.replace(encoding, logit_scale=encoding.logit_scale * (1 + 2**-20))

    monkeypatch.setattr(cls, "encode", moved)
    assert not sample.same_encodings(cells[0]), "a last bit is enough"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_processes_of_a_stage_which_save(number, tmp_path):
    told = signal.SIGTERM if number == signal.SIGHUP else number  # a terminal that closes
    child = "import os, signal, sys, time\n"  # os.write, since the signal may come before print has returned
    child += f"signal.signal({int(told)}, lambda *_: (os.write(1, b'saved\\n'), sys.exit(7)))\n"
    child += "print('ready', flush=True)\ntime.sleep(60)"
    parent = f"import sys; from benchmark.run.local import run_group; sys.exit(run_group([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 7


def test_a_stage_that_is_killed_while_it_stops_was_stopped():
    """Lightning kills the ranks that are later than the first: the command must not go on with the next stage."""
    child = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    child += "print('ready', flush=True)\ntime.sleep(60)"
    parent = f"import sys; from benchmark.run.local import run_group; sys.exit(run_group([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_under_nohup_a_terminal_may_close():
    child = "print('ready', flush=True); input(); print('done', flush=True)"
    parent = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    parent += f"from benchmark.run.local import run_group; sys.exit(run_group([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate("\n", timeout=30)[0] == "done\n"
    assert process.returncode == 0


def test_two_processes_make_the_same_images_and_features(first, out):
    (cell,) = out.glob("cells/smoke/rpe2d-16x16-32x32-s0-*")
    complete = content(cell)
    (cell / "samples.json").unlink()
    for path in [*cell.glob("chunks/*.tar"), *cell.glob("features/*/*")]:
        path.unlink()
    again = command("sample", "rpe2d", "--protocol", "smoke", "--test", "32x32", "--devices", "2", out=out)
    assert again.returncode == 0, again.stderr
    made = content(cell)
    assert made.keys() == complete.keys()
    for name, value in made.items():
        if name.startswith("chunk"):
            assert value == complete[name]
        else:  # from which all scores come
            torch.testing.assert_close(load(value), load(complete[name]), rtol=1e-4, atol=1e-4)


def test_a_seed_reaches_every_stage(tmp_path, monkeypatch):
    """The first weights, the order of the data, the noise of a step, the places of tokens, the images and the record's name."""
    settings = ["train.steps=2", "sample.count=16", "train.precision=float32", "sample.precision=float32"]
    settings += ["options.rpe2d.spacing=random"]  # places at test are drawn from the seed, too
    rules, run = protocol.load("smoke", settings), Run(tmp_path)
    step, generate, started, asked = Method.training_step, Method.generate, [], []

    def remember(self, batch, batch_index=0):
        weights = {key: value.cpu().clone() for key, value in self.state_dict().items()}
        loss = step(self, batch, batch_index)
        started.append((weights, batch["key"], loss.item()))
        return loss

    monkeypatch.setattr(Method, "training_step", remember)
    monkeypatch.setattr(
        Method, "generate", lambda self, size, seed, *rest: asked.append((self.seed, seed)) or generate(self, size, seed, *rest)
    )
    for verb, *words in (["train"], ["sample", "--test", "16x16"], ["score", "--test", "16x16"]):
        here(verb, "rpe2d", *settings, *words, "--protocol", "smoke", "--seed", "3", out=tmp_path)
    (folder,), (shards,) = tmp_path.glob("trainings/*"), tmp_path.glob("data/*")
    assert folder.name.startswith("rpe2d-16x16-s3-")
    assert json.loads((folder / REPORT).read_text())["seed"] == 3
    weights, keys, loss = started[0]
    for seed in (3, 0):
        method = registry.build("rpe2d", rules, "16x16", seed)
        first = Batches(Index(shards), 8, seed, transform=Transform((16, 16), *method.augmentation))[0]
        assert all(torch.equal(weights[key], value) for key, value in method.state_dict().items()) == (seed == 3)
        assert (first["key"] == keys) == (seed == 3)
        assert (method.loss(first).item() == pytest.approx(loss, rel=1e-4)) == (seed == 3)
    assert asked == [(3, 3)]
    (cell,) = tmp_path.glob("cells/smoke/*")
    images, made = read_chunk(cell / "chunks" / "chunk-00000.tar"), sample.built(Cell(rules, "rpe2d", "16x16", "16x16", 3), run)
    assert made.seed == 3
    for seed in (3, 0):
        expected = to_uint8(generate(made, "16x16", seed, range(16)))
        assert (np.abs(images.astype(int) - expected).max() <= 1) == (seed == 3)
    (path,) = tmp_path.glob("records/**/*.json")
    assert path.name == "16x16-16x16-s3.json"
    assert json.loads(path.read_text())["seed"] == 3


def test_sweep_trains_shared_checkpoints_once_and_custom_runs_stay_apart(out, monkeypatch, capsys):
    monkeypatch.setattr(local, "run_in_parallel", lambda *_: None)  # whose processes test_local follows
    settings = ["train.steps=2", "sample.count=16"]
    here("sweep", *settings, "--protocol", "smoke", "--methods", "yarn,ntk,extrapolation", out=out)
    custom = protocol.load("smoke", settings)
    made = [line for line in capsys.readouterr().out.splitlines() if "train extrapolation 16x16" in line and "2/2 steps" in line]
    assert len(made) == 1, made
    records = list((out / "records" / custom.hash).rglob("*.json"))
    assert len(records) == 9
    scores = {
        path.parent.name: json.loads(path.read_text())["scores"]["fid"]["value"] for path in records if "16x16-16x16" in path.name
    }
    assert scores["yarn"] == scores["ntk"] == scores["extrapolation"], "at the training size they are one model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "rope2d"], "unknown method 'rope2d'; did you mean 'rpe2d'? (choose from: "),
        (["bench", "rpe2d", "--protocol", "shapez"], "unknown protocol 'shapez'; did you mean 'shapes'?"),
        (["bench", "rpe2d", "train.stepz=3"], "unknown setting 'train.stepz'; did you mean 'train.steps'?"),
        (
            ["bench", "rpe2d", "options.rpe2d.hmax=3", "--protocol", "smoke"],
            "unknown option of RPE-2D 'hmax'; did you mean 'h_max'?",
        ),
        (["sample", "rpe2d", "--protocol", "smoke", "--test", "99x99"], "smoke has no cell * -> 99x99 (choose from: 16x16 -> "),
        (["train", "rpe2d", "--protocol", "smoke", "--data", "no/such/folder"], "DATA must be empty"),
        (["train", "rpe2d", "--protocol", "smoke", "--devices", "many"], "DEVICES must be 'auto' or the number"),
        (
            ["sample", "nope", "--protocol", "smoke"],
            "nope 16x16 seed 0 is not trained; run `.venv/bin/python -m benchmark train nope",
        ),
        (["score", "rpe2d", "--protocol", "smoke", "--detector", "shapes"], "a method's cells use the protocol's detector"),
        (["score", "rpe2d", "--protocol", "smoke", "--weights", "a.pt"], "--detector, --weights and --json belong to --samples"),
        (["sweep", "--protocol", "smoke", "--wait"], "--resources and --wait need --cluster"),
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
    smoke, file = protocol.load("smoke"), out / "core.safetensors"
    trained = fit(Training(smoke, "extrapolation", "16x16", 0), Run(out))
    monkeypatch.setattr(sys, "argv", ["benchmark", "weights", "yarn", str(file), "--protocol", "smoke", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    state = checkpoint.load_core(file)
    own = {key.removeprefix("core."): value for key, value in load_file(trained / WEIGHTS).items()}
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)
