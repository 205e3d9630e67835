"""Keys: what they depend on, and that an edit of any code behind a file changes them."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import identity, protocol
from benchmark.evaluate.detectors.base import outputs_of
from benchmark.files import ROOT
from benchmark.identity import Cell, Training, code_files
from benchmark.protocol import Protocol

METHOD = "benchmark.model.method"


def code_key(*modules: str) -> str:
    """As another process would take it."""
    identity.code_key.cache_clear()
    return identity.code_key(*modules)


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Iterator[Path]:
    """The project's code elsewhere, to be edited."""
    for folder in ("benchmark", "methods"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    yield tmp_path
    identity.code_key.cache_clear()


def test_the_code_behind_a_module_is_followed():
    files = code_files(METHOD)
    assert {"benchmark/model/method.py", "benchmark/model/dit.py", "benchmark/streams.py"} <= set(files)
    assert not any("evaluate" in file or "board" in file for file in files)
    assert "benchmark/model/dit.py" in code_files("methods.yarn"), "over methods/extrapolation.py and the model"
    assert "methods/extrapolation.py" in code_files("methods.yarn")


def test_an_edit_far_below_changes_the_key_and_a_comment_does_not(copy):
    before, file = code_key(METHOD), copy / "benchmark" / "model" / "encoding.py"
    assert before == code_key(METHOD)
    text = file.read_text()
    file.write_text(text + "\n# What nobody needs to know.\n")
    assert code_key(METHOD) == before
    first, _, rest = text.partition('"""\n')
    assert first.startswith('"""')
    file.write_text(f'"""Told otherwise."""\n{rest}')
    assert code_key(METHOD) == before, "a docstring"
    file.write_text(text + "\nMORE = 1\n")
    assert code_key(METHOD) != before
    file.write_text(text)
    assert code_key(METHOD) == before
    other = copy / "benchmark" / "board" / "view.py"
    other.write_text(other.read_text() + "\nMORE = 1\n")
    assert code_key(METHOD) == before, "no number runs through it"


def test_an_edit_changes_the_keys_of_what_runs_through_it_and_no_others(copy):
    smoke = protocol.load("smoke")
    trainings = [Training(smoke, name, "16x16", 0) for name in ("extrapolation", "rpe2d")]
    cells = [Cell(smoke, name, "16x16", "32x24", 0) for name in ("yarn", "ntk")]

    def keys() -> list[str]:
        identity.code_key.cache_clear()
        return [*(one.key("data") for one in trainings), *(one.key("training") for one in cells)]

    def edit(*names: str) -> list[bool]:
        """Which keys an edit of files changes."""
        before = keys()
        for name in names:
            with (copy / name).open("a") as file:
                file.write("\nMORE = 1\n")
        return [one != other for one, other in zip(before, keys(), strict=True)]

    assert edit("methods/rpe2d.py", "methods/yarn.py") == [False, True, True, False]
    assert edit("benchmark/data/batches.py") == [True, True, False, False]
    assert edit("benchmark/model/dit.py") == [True] * 4


def test_what_reads_the_first_weights_is_behind_trainings_that_have_some(copy, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"weights")
    tuned = protocol.load("smoke", [f"train.init={tmp_path / 'weights.pt'}"])
    trainings = [Training(rules, "nope", "16x16", 0) for rules in (protocol.load("smoke"), tuned)]

    def keys() -> list[str]:
        identity.code_key.cache_clear()
        return [one.key("data") for one in trainings]

    before = keys()
    with (copy / "benchmark/model/checkpoint.py").open("a") as file:
        file.write("\nMORE = 1\n")
    assert [one == other for one, other in zip(before, keys(), strict=True)] == [True, False]


def test_the_code_behind_each_key():
    """An edit of what crops, rounds, measures or scores makes weights, images and records anew."""
    model = {f"benchmark/model/{name}.py" for name in ("autoencoder", "diffusion", "dit", "draws", "encoding", "precision")}
    data = {f"benchmark/data/{name}.py" for name in ("batches", "choice", "images")}
    assert model | data | {"benchmark/model/optimizers.py"} <= set(code_files(*identity.TRAINING))
    assert model <= set(code_files(*identity.SAMPLING))
    scores = {f"benchmark/evaluate/{name}.py" for name in ("denoising", "manifold", "metrics", "reference", "score")}
    assert scores <= set(code_files(*identity.SCORING))


def test_a_training_follows_all_that_it_is_made_of():
    def key(*settings: str, method: str = "rpe2d", data: str = "a") -> str:
        return Training(protocol.load("smoke", list(settings)), method, "16x16", 0).key(data)

    assert key(data="b") != key()
    for word in ("options.rpe2d.h_max=24", "objective.shift=2", "objective.class_dropout=0.2", "core.rope_base=50",
                 "data.on_corrupt=skip", "train.flip=false", "train.ema=0.8", "train.lr_of.rpe2d=1e-4"):  # fmt: skip
        assert key(word) != key(), word
    for word in ("options.yarn.temperature=0.2", "sample.guidance=3", "score.splits=1", "train.lr_of.ledit=1e-4"):
        assert key(word) == key(), word


def test_images_follow_all_that_they_are_made_by():
    def key(*settings: str) -> str:
        return Cell(protocol.load("smoke", list(settings)), "yarn", "16x16", "32x24", 0).key("weights")

    for word in ("sample.guidance=3", "sample.steps=5", "sample.solver=heun", "sample.labels=random",
                 "switches.attention_scale=jin", "switches.timestep_shift=sqrt_area", "options.yarn.beta_slow=2"):  # fmt: skip
        assert key(word) != key(), word
    assert key("score.splits=1") == key()


def test_a_reference_follows_all_that_it_is_made_of():
    usual, other = ["shapes", "c", "16x16", "shapes", "w", 10, 5], ["x", "d", "16x24", "inception", "v", 11, 6]
    keys = {identity.reference_key(*usual[:k], other[k], *usual[k + 1 :]) for k in range(7)}
    assert len(keys | {identity.reference_key(*usual)}) == 8


def test_what_calls_the_detector_is_behind_features():
    for name in ("shapes", "inception"):
        files = code_files(identity.detector_module(name), "benchmark.evaluate.spectrum")
        assert str(Path(inspect.getsourcefile(outputs_of)).relative_to(ROOT)) in files


def test_an_import_inside_a_function_counts_and_one_for_annotations_does_not(copy):
    folder = copy / "benchmark" / "model"
    (folder / "one.py").write_text("def f():\n    from benchmark.model import two\n    return two\n")
    (folder / "two.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from benchmark.model import three\n")
    (folder / "three.py").write_text("X = 1\n")
    assert set(code_files("benchmark.model.one")) >= {"benchmark/model/one.py", "benchmark/model/two.py"}
    assert "benchmark/model/three.py" not in code_files("benchmark.model.one")
    (folder / "two.py").write_text("import benchmark.model.three as three\n")
    assert "benchmark/model/three.py" in code_files("benchmark.model.one")


def shapes(*tests: str) -> Protocol:
    found = protocol.load("shapes")
    found.cells = {"32x32": ["32x32", *tests]}
    return found


def test_what_a_training_may_know_of_its_test_sizes_is_in_its_key():
    """A method that prepares for the longest axis prepares for other numbers; so its training is another one."""
    square, wide = (Training(shapes(*tests), "randomized_1d", "32x32", 0) for tests in (["64x64"], ["64x32", "32x64"]))
    assert (square.protocol.largest("32x32"), wide.protocol.largest("32x32")) == ([16, 256], [16, 128])
    assert square.key("data") != wide.key("data")
    assert square.key("data") == Training(shapes("64x64", "48x64"), "randomized_1d", "32x32", 0).key("data")


def test_keys_name_folders(tmp_path):
    found = protocol.load("smoke")
    training, cell = Training(found, "nope", "16x16", 3), Cell(found, "nope", "16x16", "32x24", 3)
    assert cell.training == training
    assert training.folder(tmp_path, "data") == tmp_path / "trainings" / f"nope-16x16-s3-{training.key('data')}"
    assert cell.folder(tmp_path, "k") == tmp_path / "cells" / "smoke" / f"nope-16x16-32x24-s3-{cell.key('k')}"
    assert str(cell) == "nope 16x16 -> 32x24 seed 3"
