"""The denoising loss as a stage and as a verb: from a finished training to the score of a cell, without sampling."""

from __future__ import annotations

import dataclasses
import io

import pytest
import rich.console
from PIL import Image

from benchmark import protocol
from benchmark.data.card import Card
from benchmark.data.writer import prepare
from benchmark.evaluate import denoising
from benchmark.files import UserError, read_json
from benchmark.identity import Cell
from benchmark.plan.place import Run
from benchmark.plan.stages import Context, Score, graph
from benchmark.results import record
from benchmark.run import local, loss, score
from benchmark.run.train import train

RULES = protocol.load("smoke", ["sample.precision=float32", "train.precision=float32"])
CELLS, OWN = ([Cell(RULES, name, "16x16", test, 0) for test in ("16x16", "32x32")] for name in ("yarn", "extrapolation"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    found = Run(tmp_path_factory.mktemp("runs"), workers=1, devices="1")
    train(CELLS[0].training, found)
    return found


def test_a_training_free_method_is_compared_with_the_one_whose_checkpoint_it_uses(run):
    found = loss.compared(CELLS, run)
    (_, same, equal, _), (_, own, comparison, _) = found
    assert equal.difference == equal.low == equal.high == 0  # at the training size it is the other one
    assert comparison.difference != 0
    images = loss.heldout_images(RULES, "32x32", run, "cpu")
    base = loss.cell_loss(OWN[1], run, images)
    assert comparison.difference == pytest.approx(own["value"] - base["value"])
    assert same["images"] != own["images"] == images.hash
    assert len(own["replicates"]) == 200
    text = io.StringIO()
    loss.print_losses(found, "extrapolation", True, rich.console.Console(file=text, width=140))
    assert "minus extrapolation's" in text.getvalue()
    for shown in (f"{own['value']:.5f}", f"{comparison.difference:+.5f}", f"{own['levels'][3]:.4f}"):
        assert shown in text.getvalue()
    assert f"on {denoising.IMAGES} images" in text.getvalue()
    assert {one.count for one in found} == {denoising.IMAGES}
    text = io.StringIO()  # of a data set's own shards
    read = [one._replace(entry=one.entry | {"trained_on": True}, count=30) for one in found]
    loss.print_losses(read, "extrapolation", console=rich.console.Console(file=text, width=140))
    assert "on 30 training images" in text.getvalue()


def test_held_out_images_are_none_of_the_references(tmp_path, monkeypatch):
    seen, run = [], Run(tmp_path)
    monkeypatch.setattr(score, "make", lambda source, *_, **__: seen.append(source.split))
    monkeypatch.setattr(denoising, "heldout", lambda source, *_, **__: seen.append(source.split))
    score.reference(RULES, "16x16", Context(RULES, run), detector=object())
    loss.heldout_images(RULES, "16x16", run, "cpu")
    assert seen == ["reference", "heldout"]


@pytest.mark.parametrize(
    ("classes", "told"), [(3, "has 3 classes, the core of smoke 8"), (8, "class 0 is 'a0', in training it was")]
)
def test_held_out_shards_of_other_classes_are_refused(classes, told, run, tmp_path):
    """Labels are numbers, which the core would take for its own classes."""
    for number in range(classes):
        (tmp_path / "in" / f"a{number}").mkdir(parents=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "in" / f"a{number}" / "x.png")
    shards = prepare(Card("other", "folder"), tmp_path / "in", tmp_path / "out").folder
    with pytest.raises(UserError, match=told):
        loss.compared(OWN[:1], run, folder=shards)


def test_a_method_with_its_own_checkpoint_stands_alone_unless_asked(run):
    (alone,) = loss.compared(OWN[:1], run)
    assert alone.comparison is None
    (paired,) = loss.compared(OWN[1:], run, against="yarn")
    assert paired.comparison.difference != 0
    with pytest.raises(UserError, match="unknown method"):
        loss.compared(OWN, run, against="yarm")


def test_a_record_holds_the_loss_with_its_levels(run, monkeypatch):
    """The whole stage, on fewer images."""
    monkeypatch.setattr(loss.heldout_images, "__defaults__", (16, ""))
    small = dataclasses.replace(RULES, cells={"16x16": ["32x32"]})
    stages = graph(small, ["yarn"], 0, run)
    assert not local.run_all(stages)
    value = read_json(next(stage.file for stage in stages if isinstance(stage, Score)))
    entry = value["scores"]["loss"]
    assert len(entry["replicates"]) == 200
    assert entry["low"] < entry["value"] < entry["high"]
    assert len(entry["levels"]) == len(entry["times"]) == denoising.LEVELS
    assert entry["images"] == loss.heldout_images(small, "32x32", run, "cpu").hash, "of the test size"
    assert sum(entry["levels"]) / 8 == pytest.approx(entry["value"], rel=1e-4)
    place = record.write(value, run.out / "again")
    assert record.read(place, small).scores["loss"] == entry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [0.2]}, "times must be 2 ascending numbers"),
        ({"times": [0.7, 0.2]}, "ascending"),
        ({"times": [0.2, 1.7]}, "between 0 and 1"),
        ({"value": 1.5}, "not the mean of its levels"),
        ({"value": -1.0, "levels": [-1.0, -1.0]}, "lies in"),
    ],
)
def test_losses_that_are_made_up_are_refused(change, message):
    needed = {name: {"value": 2.0, "low": 2.0, "high": 2.0, "replicates": [2.0]} for name in ("fid", "is")}
    ends = {"low": 1.0, "high": 1.0, "replicates": [1.0]}
    sound = {"value": 1.0, **ends, "levels": [0.5, 1.5], "times": [0.2, 0.7], "images": "0123456789ab"}
    record._fit_scores({**needed, "loss": sound}, 1, 8)
    with pytest.raises(UserError, match=message):
        record._fit_scores({**needed, "loss": sound | change}, 1, 8)
