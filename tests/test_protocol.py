"""Protocols: every shipped file loads, rules are checked, overrides make a run custom, hashes follow the rules alone."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from benchmark import protocol
from benchmark.files import UserError


@pytest.mark.parametrize("name", protocol.names())
def test_shipped_protocols_load(name):
    rules = protocol.load(name)
    assert rules.name == name
    assert rules.title
    assert not rules.custom
    for train, test in rules.pairs():
        assert all(n >= 1 for n in rules.grid(test))
        assert rules.largest(train)[0] >= max(rules.grid(train))


def test_shapes_long_is_the_protocol_that_is_promised():
    rules = protocol.load("shapes-long")
    (train,) = rules.cells
    height, width = protocol.size_hw(train)
    tests = [protocol.size_hw(size) for size in rules.cells[train]]
    assert {h / height for h, w in tests if h * width == w * height} == {0.5, 0.75, 1, 1.5, 2}
    assert sum(h != w for h, w in tests) == 2


def test_a_rehearsal_is_shorter_and_nothing_else(tmp_path):
    """Its cells are some of the longer protocol's; a rehearsal of nothing is refused."""
    short, long = protocol.load("shapes"), protocol.load("shapes-long")
    assert (short.rehearses, long.rehearses) == ("shapes-long", "")
    assert {key for key, value in short.rules().items() if value != long.rules()[key]} == {"train", "sample", "cells"}
    assert {key for key, value in vars(short.train).items() if value != vars(long.train)[key]} == {"steps", "decay"}
    assert {key for key, value in vars(short.sample).items() if value != vars(long.sample)[key]} == {"count"}
    assert short.train.steps < long.train.steps / 3
    assert set(short.pairs()) < set(long.pairs())
    assert short.largest("32x32") == long.largest("32x32")
    (tmp_path / "mine.yaml").write_text("base: shapes\n")
    assert protocol.load(str(tmp_path / "mine.yaml")).rehearses == "", "that is not inherited"
    (tmp_path / "mine.yaml").write_text("base: smoke\nrehearses: shapes-lon\n")
    with pytest.raises(UserError, match="unknown protocol that mine rehearses 'shapes-lon'; did you mean 'shapes-long'"):
        protocol.load(str(tmp_path / "mine.yaml"))


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
        ("train.steps=abc", "train.steps must be a whole number, not 'abc'"),
        ("train.steps=0", "train.steps must be at least 1"),
        ("core.patch=5", "not a multiple of 5 pixels per token"),
        ("core.heads=3", "not divisible by 3 heads"),
        ("core.width=36", "not divisible by 4"),
        ("sample.solver=ddim", "unknown solver for the flow objective 'ddim'"),
        ("sample.solver=eulr", "did you mean 'euler'"),
        ("objective.name=ddpm", "unknown solver for the ddpm objective"),
        ("train.precision=fp8", "unknown train.precision"),
        ("score.detector=dinov2", "unknown score.detector 'dinov2'"),  # it gives no inception score
        ("score.splits=33", "score.splits must be 0 (the detector's rule) to 32"),
        ("score.splits=-1", "score.splits must be at least 0, not -1"),
        ("score.nearest=3", "score.nearest must be at least 4, not 3"),
        ("score.reference=3", "score.reference must be at least 4, not 3"),
        ("sample.count=3", "sample.count must be at least 4, not 3"),
        ("data.factor=8", "data.factor is 8, but must be 1 for pixels"),
        ("objective.name=ddpm sample.solver=ddim sample.steps=1", "sample.steps is 1; a DDPM model allows 2 to 1000"),
        ("objective.name=ddpm sample.solver=ddim sample.steps=1001", "sample.steps is 1001; a DDPM model allows 2 to 1000"),
        ("objective.name=ddpm sample.solver=ddim objective.time=uniform", "objective.time is for flow models only"),
        ("objective.name=ddpm sample.solver=ddim objective.shift=2", "objective.shift is for flow models only"),
        ("objective.name=ddpm sample.solver=ddim objective.convention=sit", "objective.convention is for flow models only"),
        ("train.optimizer=adamw train.muon_lr=0.1", "train.muon_lr is for Muon only"),
    ],
)
def test_bad_rules_are_refused_in_one_line(override, message):
    with pytest.raises(UserError) as error:
        protocol.load("smoke", override.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_protocol_lists_what_exists():
    with pytest.raises(UserError, match=r"unknown protocol 'shape'; did you mean 'shapes'\? \(choose from: .*smoke"):
        protocol.load("shape")


def test_a_size_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text((protocol.FOLDER / "smoke.yaml").read_text().replace("32x24", "32x23"))
    with pytest.raises(UserError, match="size 32x23 is not a multiple of 4"):
        protocol.load(str(path))


def test_a_base_is_merged_below(tmp_path):
    """A switch protocol is its base with one setting changed, and shares its trainings."""
    plain, switched = protocol.load("shapes-long"), protocol.load("shapes-attention-jin")
    assert switched.switches.attention_scale == "jin"
    assert switched.training("32x32") == plain.training("32x32")
    assert {key for key, value in switched.rules().items() if value != plain.rules()[key]} == {"switches", "cells"}
    assert set(switched.pairs()) < set(plain.pairs())
    (tmp_path / "mine.yaml").write_text("base: shapez\ntitle: x\n")
    with pytest.raises(UserError, match="unknown base of mine 'shapez'; did you mean 'shapes'"):
        protocol.load(str(tmp_path / "mine.yaml"))
    (tmp_path / "shapes.yaml").write_text("base: shapes\ntitle: x\n")  # a copy may build on what it was copied from
    assert protocol.load(str(tmp_path / "shapes.yaml")).title == "x"
    (tmp_path / "broken.yaml").write_text("title: [\n")
    with pytest.raises(UserError, match=r"broken.yaml is not valid YAML \("):
        protocol.load(str(tmp_path / "broken.yaml"))


FIELDS = [*protocol.SETTINGS, "cells", "title", "ranked", "options", *protocol.SECTIONS]
ODD = {
    "nan": math.nan, "inf": math.inf, "minus inf": -math.inf, "-1": -1, "0": 0, "10**30": 10**30, "1e300": 1e300, "0.5": 0.5,
    "empty list": [], "empty mapping": {}, "a text": "text", "an empty text": "", "null": None, "true": True,
    "a list of nan": [math.nan, math.nan], "a list of texts": ["a", "b"], "a NUL": "a\0b", "two lines": "a\nb",
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_in_any_field_is_a_valid_protocol_or_one_line(field: str, tmp_path: Path) -> None:
    """Whatever is accepted has a hash, survives JSON, and holds finite numbers only."""
    accepted = []
    for name, value in ODD.items():
        section, *rest = field.split(".")
        given: Any = value
        for part in rest:
            given = {part: given}
        path = tmp_path / "odd.yaml"
        base = {"base": "smoke", section: given}
        path.write_text(json.dumps(base).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf"))
        message = ""
        try:
            rules = protocol.load(str(path))
        except UserError as error:
            message = str(error)
        if message:
            assert "\n" not in message
            assert len(message) < 400, "one line that a person can read"
            assert section.rstrip("s") in message or "sample" in message, (name, message)
        else:
            accepted.append(name)
            text = json.dumps(rules.rules(), allow_nan=False)
            assert len(rules.hash) == 12
            assert not any(word in text for word in ("NaN", "Infinity"))
    assert not {"nan", "inf", "minus inf", "a list of nan", "1e300"} & set(accepted), accepted


def test_every_number_declares_its_bounds() -> None:
    """A field that is added without a range is found here."""
    for name, cls in protocol.SECTIONS.items():
        for key, hint in get_type_hints(cls, include_extras=True).items():
            if key.startswith("_"):
                continue
            bare = getattr(hint, "__origin__", hint)
            if bare in (int, float):
                bounds = [item for item in getattr(hint, "__metadata__", ()) if hasattr(item, "le")]
                assert bounds, f"{name}.{key} has no bounds"
                low, high = (bounds[0].ge, bounds[0].gt), (bounds[0].le, bounds[0].lt)
                assert any(x is not None for x in low), f"{name}.{key} has no lower bound"
                assert any(x is not None for x in high), f"{name}.{key} has no upper bound"
            assert hint is not Any, f"{name}.{key} may be anything"


def test_a_field_that_came_later_changes_no_hash_while_it_holds_its_default() -> None:
    from typing import Annotated, Literal

    before = protocol.load("smoke").training("16x16")

    @dataclasses.dataclass
    class Train(protocol.Train):
        optimizer: Annotated[Literal["adamw", "muon"], protocol.LATER] = "adamw"

    rules = protocol.load("smoke")
    old = rules.hash
    Train.__annotations__["optimizer"] = Annotated[Literal["adamw", "muon"], protocol.LATER]
    rules.train = Train(**dataclasses.asdict(rules.train))
    assert rules.hash == old
    assert rules.training("16x16") == before
    rules.train.optimizer = "muon"
    assert rules.hash != old


def test_the_rule_of_labels_is_a_rule_and_came_later() -> None:
    rules = protocol.load("smoke")
    assert rules.sample.labels == "balanced"
    assert "labels" not in rules.sampling()["sample"], "hashes of before hold"
    drawn = protocol.load("smoke", ["sample.labels=random"])
    assert drawn.hash != rules.hash
    assert drawn.sampling() != rules.sampling()
    assert drawn.training("16x16") == rules.training("16x16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: ${oc.env:HOME}\n", "interpolation is not supported"),
        ("title: !!python/object/apply:os.system [id]\n", "use plain values"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "has the alias *a"),
        ("title: " + "[" * 1000 + "]" * 1000 + "\n", "is nested more than 20 deep"),
        ("7\n", "must hold fields"),
        ("- 7\n", "must hold fields"),
        ("", "must hold fields"),
        ("1: 2\n", "must hold fields"),
        ("title: a\ntitle: b\n", "stands there twice"),
        ("title: a\x00b\n", "is not valid YAML"),
        ("title: [\n", "is not valid YAML"),
        ("? [a, b]\n: 1\n", "a key is a list"),
        ("name: ../../evil\ntitle: x\ncells: {16x16: [16x16]}\n", "name cannot be set in a file"),
        ("custom: false\ntitle: x\ncells: {16x16: [16x16]}\n", "custom cannot be set in a file"),
        ("title: x\n", "the protocol lacks cells"),
        ("base: [smoke]\n", "unknown base of mine"),
        ("base: smoke\ncells: {16x16: []}\n", "must be of at least 1 items"),
        ("base: smoke\ncells: {16x16: [200000x200000]}\n", "has a side above 16384 pixels"),
        ("base: smoke\ncells: {٣x٣: [16x16]}\n", "is not HEIGHTxWIDTH"),
        ("base: smoke\ncore: {channels: 4}\n", "core.channels is 4; pixels have 3"),
        ("base: smoke\ntrain: 7\n", "train must be a section of fields, not 7"),
        ("base: smoke\ntrain: {step: 7}\n", "did you mean 'train.step"),
        ("base: smoke\ntrain: {steps: " + "9" * 5000 + "}\n", "mine.yaml"),
        ("base: smoke\noptions: {yarn: {temperature: .nan}}\n", "must hold finite numbers"),
    ],
)
def test_a_file_with_a_surprise_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        protocol.load(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"title: \xe9\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        protocol.load(str(tmp_path / "latin.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    for name in (str(tmp_path / "folder.yaml"), "a\0b.yaml", "x" * 5000 + ".yaml", "", ".", "/", "..", "smoke/"):
        with pytest.raises(UserError, match="unknown protocol"):
            protocol.load(name)
    (tmp_path / "Two words.yaml").write_text("base: smoke\n")
    with pytest.raises(UserError, match="must be a name of"):
        protocol.load(str(tmp_path / "Two words.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=${oc.env:HOME}", "interpolation is not supported"),
        ("train.lr=!!python/name:os.system", "use plain values"),
        ("train.lr=" + "[" * 1000, "is nested more than 20 deep"),
        ("train.lr=[1", "is not valid YAML"),
        ("train.betas=[0.9]", "train.betas must be of at least 2 items"),
        ("train.betas=[0.9, 1.1]", "train.betas.1 must be below 1"),
        ("options..x=1", "unknown setting"),
        ("cells=3", "unknown setting"),
        ("=3", "unknown setting"),
        ("train.steps=", "train.steps must be a whole number, not None"),
    ],
)
def test_a_bad_override_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        protocol.load("smoke", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "options.yarn.temperature=0.2", "cells.16x16=[16x16]", "switches.attention_scale=jin", "score.splits=1",
        "score.nearest=8", "objective.shift=2", "core.rope_base=50", "data.count=65", "train.lr_of.ledit=1e-4", "train.ema=0.8",
    ],
)  # fmt: skip
def test_every_rule_is_in_the_hash(word):
    """Or a custom run's records would lie among those of the protocol, and could be submitted."""
    assert protocol.load("smoke", [word]).hash != protocol.load("smoke").hash
