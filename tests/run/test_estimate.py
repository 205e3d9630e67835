"""The time that is announced before a run: from the stages that are missing, at the speed that is measured."""

from __future__ import annotations

import dataclasses

import pytest

from benchmark import protocol
from benchmark.model import flops
from benchmark.plan import stages
from benchmark.plan.place import Run
from benchmark.run import estimate


@pytest.fixture
def smoke(tmp_path):
    found, run = protocol.load("smoke"), Run(tmp_path, devices="1")
    return found, run, stages.graph(found, ["rpe2d", "ntk"], 0, run)


def test_hours_are_operations_over_speed(smoke):
    _, _, found = smoke
    speed = estimate.Speed(training=1e9, sampling=2e9)
    hours = estimate.hours(found, speed, devices=1)
    cost = {kind: sum(stage.cost().operations for stage in found if stage.kind == kind) for kind in ("train", "sample")}
    assert hours["train"] == pytest.approx(cost["train"] / 1e9 / 3600)
    assert hours["sample"] == pytest.approx(cost["sample"] / 2e9 / 3600)
    assert estimate.hours(found, speed, devices=4)["train"] == pytest.approx(hours["train"] / 4)


def test_a_measurement_uses_the_core_and_leaves_random_numbers_alone(smoke, monkeypatch):
    import torch

    monkeypatch.setattr(estimate, "SECONDS", 0.05)
    state = torch.get_rng_state()
    speed = estimate.measure(smoke[0], "cpu")
    assert speed.training > 1e6
    assert speed.sampling > 1e6
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(estimate, "seconds", lambda work, where: 2.0)
    speed = estimate.measure(smoke[0], "cpu")
    assert speed.training == pytest.approx(flops.training_flops(smoke[0], "16x16") * 8 / 2), "of batches of 8"
    assert speed.sampling == pytest.approx(flops.forward_flops(smoke[0].core, 1, (4, 4)) * 2 * 16 / 2), "of 16, with guidance"


def test_a_large_core_is_measured_by_two_blocks_and_few_images(monkeypatch):
    large = protocol.load("imagenet-256-b2")
    built = []
    monkeypatch.setattr(estimate, "seconds", lambda work, where: 1.0)
    monkeypatch.setattr(estimate, "Bare", lambda found, size: built.append(found) or _Stop())
    with pytest.raises(_Stopped):
        estimate.measure(large, "cpu")
    assert built[0].core.depth == 2
    assert built[0].core.width == large.core.width


class _Stopped(Exception):
    pass


class _Stop:
    def to(self, where):
        raise _Stopped


def test_one_line_is_said_for_what_is_missing_and_none_when_all_is_there(smoke, monkeypatch, capsys):
    found, run, missing = smoke
    monkeypatch.setattr(estimate, "measure", lambda protocol, where: estimate.Speed(1e7, 1e7))
    monkeypatch.setattr(estimate, "has_bf16", lambda: True)
    estimate.announce(found, missing, run)
    said = capsys.readouterr().out
    assert said.startswith("about ")
    assert "to train" in said
    assert said.count("\n") == 1
    estimate.announce(dataclasses.replace(found, rehearses="shapes"), missing, run)
    assert "is a rehearsal, too short to converge; the full protocol is PROTOCOL=shapes\n" in capsys.readouterr().out
    monkeypatch.setattr(stages.Stage, "is_complete", lambda stage: True)
    estimate.announce(found, missing, run)
    assert capsys.readouterr().out == ""


def test_a_processor_without_bf16_is_told(smoke, monkeypatch, capsys):
    found, run, missing = smoke
    monkeypatch.setattr(estimate, "measure", lambda protocol, where: estimate.Speed(1e7, 1e7))
    monkeypatch.setattr(estimate, "has_bf16", lambda: False)
    estimate.announce(found, missing, run)
    assert "has no bfloat16 matrix products" in capsys.readouterr().out
