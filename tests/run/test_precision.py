"""Trainings, images and losses are computed in the format that the protocol asks for, as far as the machine has it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from benchmark import protocol
from benchmark.files import read_json
from benchmark.identity import Cell
from benchmark.model import precision
from benchmark.model.dit import Attention
from benchmark.plan.layout import DONE, REPORT, WEIGHTS
from benchmark.plan.place import Run
from benchmark.run import loss, sample
from benchmark.run.train import train

NAMES = {torch.bfloat16: "bf16", torch.float32: "float32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("runs"), devices="1", workers=1)


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """The formats in which the blocks' linear layers answer."""
    found, forward = [], Attention.forward

    def remember(self, *given):
        output = forward(self, *given)  # of a linear layer
        found.append(NAMES[output.dtype])
        return output

    monkeypatch.setattr(Attention, "forward", remember)
    return found


@pytest.mark.parametrize(
    ("there", "training", "sampling"), [(True, "bf16", "float32"), (True, "float32", "bf16"), (False, "bf16", "bf16")]
)
def test_formats_are_what_was_asked_for_and_is_reported(there, training, sampling, run, seen, monkeypatch):
    """Whatever this processor has: autocast works on each."""
    monkeypatch.setattr(precision, "has_bf16", lambda: there)
    steps = ["train.steps=2", "sample.steps=1", "sample.count=16"]
    rules = protocol.load("smoke", [*steps, f"train.precision={training}", f"sample.precision={sampling}"])
    cell = Cell(rules, "nope", "16x16", "16x16", seed=int(there))  # another seed: the key of a training knows what it asks for
    trained, sampled = (asked if there else "float32" for asked in (training, sampling))

    folder = train(cell.training, run)
    assert set(seen) == {trained} == {read_json(folder / REPORT)["precision"]}
    assert {value.dtype for value in load_file(folder / WEIGHTS).values()} == {torch.float32}
    seen.clear()
    made = sample.sample(cell, run)
    assert set(seen) == {sampled} == {read_json(made / DONE)["hardware"]["precision"]}
    seen.clear()
    loss.cell_loss(cell, run, loss.heldout_images(rules, "16x16", run, "cpu", 4))
    assert set(seen) == {sampled}
