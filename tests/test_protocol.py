"""Protocols: every shipped file loads, rules are checked, overrides make a run custom, hashes follow the rules alone."""

from __future__ import annotations

import pytest

from benchmark import protocol
from benchmark.files import UserError

SHAPES = "47f6881589a5"  # the rules behind the committed records of `shapes`


@pytest.mark.parametrize("name", protocol.names())
def test_shipped_protocols_load(name):
    rules = protocol.load(name)
    assert rules.name == name
    assert rules.title
    assert not rules.custom
    for train, test in rules.pairs():
        assert all(n >= 1 for n in rules.grid(test))
        assert rules.largest_grid(train) >= max(rules.grid(train))


def test_shapes_is_the_contest_that_is_promised():
    rules = protocol.load("shapes")
    (train,) = rules.cells
    height, width = protocol.size_hw(train)
    tests = [protocol.size_hw(size) for size in rules.cells[train]]
    assert {h / height for h, w in tests if h * width == w * height} == {0.5, 0.75, 1, 1.5, 2}
    assert sum(h != w for h, w in tests) == 2


def test_sizes_are_height_then_width():
    rules = protocol.load("shapes")
    assert protocol.size_hw("64x48") == (64, 48)
    assert rules.grid("64x48") == (64 // rules.core.patch, 48 // rules.core.patch)
    assert protocol.ratio("32x32", "64x64") == 2
    assert protocol.ratio("32x32", "64x48") == pytest.approx(3**0.5)


def test_hash_follows_the_rules_and_nothing_else():
    rules = protocol.load("smoke")
    assert rules.hash == protocol.load("smoke").hash
    assert protocol.load("smoke", ["sample.guidance=2.5"]).hash != rules.hash
    assert protocol.load("smoke", ["methods=[nope]"]).hash == rules.hash


def test_overrides_make_a_custom_run():
    rules = protocol.load("smoke", ["train.steps=7", "options.rpe2d.h_max=24"])
    assert rules.custom
    assert rules.train.steps == 7
    assert rules.options == {"rpe2d": {"h_max": 24}}
    assert protocol.load(rules.source, rules.overrides) == rules


def test_a_file_elsewhere_is_custom(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((protocol.FOLDER / "smoke.yaml").read_text())
    rules = protocol.load(str(path))
    assert rules.custom
    assert rules.hash == protocol.load("smoke").hash


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "did you mean 'train.steps'"),
        ("nonsense", "is not an override"),
        ("train.steps=abc", "could not be converted to Integer"),
        ("train.steps=0", "train.steps must be at least 1"),
        ("core.patch=5", "not a multiple of 5 pixels per token"),
        ("core.heads=3", "not divisible by 3 heads"),
        ("core.width=36", "not divisible by 4"),
        ("sample.solver=ddim", "unknown solver for the flow objective 'ddim'"),
        ("sample.solver=eulr", "did you mean 'euler'"),
        ("objective.name=ddpm", "unknown solver for the ddpm objective"),
        ("sample.count=1", "a covariance needs two images"),
        ("train.precision=fp8", "unknown train.precision"),
        ("score.detector=dinov2", "unknown score.detector 'dinov2'"),  # it gives no inception score
        ("score.splits=33", "score.splits must be 0 (the detector's rule) to 32"),
        ("score.splits=-1", "score.splits must be 0 (the detector's rule) to 32"),
        ("score.nearest=3", "precision needs a third neighbour"),
        ("sample.count=3", "precision needs a third neighbour"),
        ("data.factor=8", "data.factor is 1 for pixels only"),
    ],
)
def test_bad_rules_are_refused_in_one_line(override, message):
    with pytest.raises(UserError) as error:
        protocol.load("smoke", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_protocol_lists_what_exists():
    with pytest.raises(UserError, match=r"unknown protocol 'shape'; did you mean 'shapes'\? \(there are: .*smoke"):
        protocol.load("shape")


def test_a_size_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text((protocol.FOLDER / "smoke.yaml").read_text().replace("32x24", "32x23"))
    with pytest.raises(UserError, match="size 32x23 is not a multiple of 4"):
        protocol.load(str(path))


def test_a_base_is_merged_below(tmp_path):
    """A switch contest is its base with one setting changed, and shares its trainings."""
    plain, switched = protocol.load("shapes"), protocol.load("shapes-attention-jin")
    assert switched.switches.attention_scale == "jin"
    assert switched.training("32x32") == plain.training("32x32")
    assert {key for key, value in switched.rules().items() if value != plain.rules()[key]} == {"switches", "cells"}
    assert set(switched.pairs()) < set(plain.pairs())
    (tmp_path / "mine.yaml").write_text("base: shapez\ntitle: x\n")
    with pytest.raises(UserError, match="unknown base of mine 'shapez'; did you mean 'shapes'"):
        protocol.load(str(tmp_path / "mine.yaml"))
    (tmp_path / "broken.yaml").write_text("title: [\n")
    with pytest.raises(UserError, match="protocol broken: "):
        protocol.load(str(tmp_path / "broken.yaml"))


def test_splits_of_the_inception_score_follow_the_detector_unless_a_protocol_names_them():
    """ADM's evaluator splits by 5,000 images; the embedded protocols keep ten, under the hash of their records."""
    found = {name: protocol.load(name).splits for name in protocol.names()}
    assert found["imagenet-256-xl2"] == 10  # of 50,000 samples
    assert found["imagenet-256-s2-10k"] == found["imagenet-512-xl2"] == 2  # of 10,000
    assert found["shapes"] == found["shapes-gpu"] == 10
    assert protocol.load("shapes").hash == SHAPES


def test_precision_at_512_is_against_as_many_real_images_as_the_evaluators():
    for name in protocol.names():
        if name.startswith("imagenet"):
            assert protocol.load(name).score.nearest == (1000 if "512" in name else 10_000)
