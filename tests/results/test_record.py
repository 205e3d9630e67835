"""Records: what is accepted, and that everything else is refused by name."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SMALL, protocols, value_of

from benchmark import files, protocol, revision
from benchmark.files import UserError
from benchmark.results import record

PAIR = ("16x16", "32x16")


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> protocol.Protocol:
    protocols(tmp_path / "protocols", monkeypatch, small=SMALL, quiet=SMALL + "ranked: false\n")
    return protocol.load("small")


def put(value: Any, *path: str, to: Any) -> Any:
    """A copy of `value` with the item at `path` replaced (removed when `to` is ...)."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return value


BAD = [
    (("schema",), 1, "schema 1 is unknown: this version reads schema 2"),
    (("schema",), ..., "the record lacks schema"),
    (("schema",), True, "schema True is unknown"),
    (("surprise",), 1, "surprise is unknown"),
    (("method", "title"), ..., "method lacks title"),
    (("method", "colour"), "red", "method.colour is unknown"),
    (("method",), [], "method must be an object"),
    (("method", "name"), "../../etc", r"method.name must be a name of \[a-z0-9_\]\+"),
    (("method", "name"), "<script>", "method.name must be"),
    (("method", "name"), "RPE", "method.name must be"),
    (("method", "name"), "yarn\n", "method.name must be"),
    (("method", "name"), "", "method.name must be"),
    (("method", "title"), "two\nlines", "method.title must be one line"),
    (("method", "title"), "x" * 81, "method.title must be a text of at most 80 characters"),
    (("method", "title"), "\u202egnp", "method.title must be"),
    (("method", "options"), {"k": math.inf}, "method.options"),
    (("protocol", "hash"), "0" * 12, "the record belongs to another version of the protocol"),
    (("protocol", "name"), "other", "protocol.name is 'other'"),
    (("cell", "test"), "64x64", "cell 16x16 -> 64x64 is not in protocol"),
    (("cell", "test"), "032x16", "cell.test must be HEIGHTxWIDTH"),
    (("seed",), -1, "seed must be"),
    (("seed",), 0.0, "seed must be"),
    (("seed",), True, "seed must be"),
    (("revisions", "train"), 0, "revisions.train must be at least 1"),
    (("revisions", "method"), {"../x": 1}, "revisions.method.*must be a name"),
    (("revisions", "method"), {"yarn": 1.5}, "revisions.method.yarn must be a whole number"),
    (("code", "dirty"), 0, "code.dirty must be true or false"),
    (("training", "loss"), math.nan, "training.loss must be"),
    (("training", "steps"), 10.5, "training.steps must be"),
    (("training", "steps"), 1, "training.steps is 1, but protocol 'small' says"),
    (("count",), 99, "count is 99, but protocol 'small' says 100"),
    (("count",), "100", "count must be a whole number"),
    (("reference", "count"), 100, "reference.count is 100"),
    (("detector", "name"), "inception", "detector.name is 'inception'"),
    (("data", "card"), "imagenet", "data.card is 'imagenet'"),
    (("scores",), [], "scores must be an object"),
    (("scores", "fid"), ..., "scores lacks fid"),
    (("scores", "beauty"), {"value": 1}, "scores.beauty is unknown"),
    (("scores", "fid", "value"), -0.1, "scores.fid.value is -0.1"),
    (("scores", "fid", "value"), 1e300, r"scores.fid.value is 1e\+300: a FID lies in \[0, 100000\]"),
    (("scores", "fid", "value"), math.nan, "scores.fid.value must be a finite number"),
    (("scores", "fid", "value"), None, "scores.fid.value must be a number, not None"),
    (("scores", "fid", "value"), True, "scores.fid.value must be a number, not True"),
    (("scores", "fid", "low"), ..., "scores.fid lacks low"),
    (("scores", "fid", "low"), 1e6, "ends swapped"),
    (("scores", "fid", "replicates"), [1.0] * 19, "scores.fid.replicates must be a list of 20"),
    (("scores", "fid", "replicates"), [1.0] * 19 + [math.inf], "scores.fid.replicates.19 must be a finite number"),
    (("scores", "fid", "replicates"), [1.0] * 19 + [True], "scores.fid.replicates.19 must be a number"),
    (("scores", "is", "value"), 0.99, "scores.is.value is 0.99"),
    (("scores", "is", "value"), 8.01, "scores.is.value is 8.01: the detector knows 8 classes"),
    (("scores", "fid", "value"), 2.0, "scores.fid.value is 2, far outside its own interval 19.2 to 20.8"),
    (("scores", "fid", "replicates"), [2.0] * 20, "scores.fid.value is 20, far from the mean of its own replicates"),
    (("scores", "precision", "value"), 1.01, "scores.precision.value is 1.01"),
    (("scores", "recall", "value"), -0.01, "scores.recall.value is -0.01"),
    (("scores", "sfid"), {"value": 1, "low": 0}, "scores.sfid has only one end"),
    (("uncertainty", "level"), 95, "uncertainty.level must be"),
    (("hours", "sample"), -1, "hours.sample must be"),
    (("hardware", "count"), 0, "hardware.count must be"),
    (("libraries",), {"torch": 2.15}, "libraries.torch must be a text"),
]


@pytest.mark.parametrize(("path", "to", "words"), BAD, ids=[f"{'.'.join(path)}={str(to)[:20]}" for path, to, _ in BAD])
def test_a_bad_record_is_refused_by_name(rules: protocol.Protocol, path: tuple[str, ...], to: Any, words: str) -> None:
    good = value_of(rules, "yarn", PAIR)
    record.validate(good, rules)
    with pytest.raises(UserError, match=words):
        record.validate(put(good, *path, to=to), rules)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("scores",), None),
        (("scores", "is"), {"value": 1, "low": 1, "high": 1, "replicates": [1] * 20}),
        (("scores", "is"), {"value": 8, "low": 7.9, "high": 8.2, "replicates": [8.1] * 20}),
        (("scores", "fid"), {"value": 0, "low": 0, "high": 0, "replicates": [0.0] * 20}),
        (("scores", "fid", "value"), 18.5),
        (("scores", "precision", "value"), 1.0),
        (("scores", "fid"), {"value": 0.1, "low": -0.2, "high": 0.4, "replicates": [-0.1] * 20}),
        (("scores", "kid"), {"value": -0.001}),
        (("scores", "is", "deviation"), 0.1),
        (("training", "loss"), None),
        (("training", "hours"), None),
        (("code", "commit"), "a" * 40),
        (("method", "options"), {"base": 100.0, "mask": ["a", None], "deep": {"k": True}}),
    ],
)
def test_the_ends_of_what_is_possible_are_accepted(rules: protocol.Protocol, path: tuple[str, ...], to: Any) -> None:
    record.validate(put(value_of(rules, "yarn", PAIR), *path, to=to), rules)


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_what_is_no_object_is_refused(rules: protocol.Protocol, value: Any) -> None:
    with pytest.raises(UserError, match="the record must be an object"):
        record.validate(value, rules)


def test_a_written_record_is_read_back_and_rewritten_byte_for_byte(rules: protocol.Protocol, tmp_path: Path) -> None:
    value = value_of(rules, "yarn", PAIR, seed=2)
    path = record.write(value, tmp_path / "records")
    assert path == tmp_path / "records" / "small" / "yarn" / "16x16-32x16-s2.json"
    found = record.read(path)
    assert found.value == value
    assert (found.method, found.title, found.pair, found.seed, found.count) == ("yarn", "YaRN", PAIR, 2, 100)
    assert found == record.read(path, rules)
    before = path.read_bytes()
    record.write(found.value, tmp_path / "records")
    assert path.read_bytes() == before


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("[]\n\\\" ,{}a", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8)))  # fmt: skip
def test_the_compact_layout_keeps_any_content(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> None:
    value = {"protocol": {"name": "p"}, "method": {"name": "m"}, "cell": {"train": "1x1", "test": "1x1"}, "seed": 0}
    value |= {"options": options}
    path = record.write(value, tmp_path_factory.mktemp("records"))
    assert json.loads(path.read_text()) == value


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_to_six_digits_and_only_once(number: float) -> None:
    (once,) = record.rounded([number])
    assert record.rounded(once) == once
    assert once == pytest.approx(number, rel=5.1e-6, abs=1e-322)


def test_build_fills_in_what_the_protocol_knows_and_rounds(rules: protocol.Protocol) -> None:
    given_ = value_of(rules, "yarn", PAIR)
    scores = {"fid": {"value": 1 / 3, "low": 0.3, "high": 0.4, "replicates": [1 / 3] * 20}, "is": given_["scores"]["is"]}
    parts = {key: given_[key] for key in ("method", "training", "reference", "detector", "uncertainty", "hours", "hardware")}
    arguments = {"train": PAIR[0], "test": PAIR[1], "seed": 0, "data_hash": "a" * 12}
    built = record.build(rules, scores=scores, **parts, **arguments)
    assert built["scores"]["fid"] == {"value": 0.333333, "low": 0.3, "high": 0.4, "replicates": [0.333333] * 20}
    assert built["revisions"] == revision.current("yarn")
    assert (built["count"], built["data"]) == (100, {"card": "shapes", "hash": "a" * 12})
    assert set(built["libraries"]) == set(record.LIBRARIES)
    assert not record.from_value(built, rules).stale
    assert record.build(rules, scores=None, **parts, **arguments)["scores"] is None
    scores["fid"]["value"] = math.nan
    with pytest.raises(UserError, match="finite number"):
        record.build(rules, scores=scores, **parts, **arguments)


def test_a_record_is_stale_when_a_revision_of_its_parts_was_raised(rules: protocol.Protocol) -> None:
    good = value_of(rules, "yarn", PAIR)
    assert not record.from_value(good, rules).stale
    assert good["revisions"]["method"].keys() == {"yarn", "extrapolation"}, "a method runs through what it builds on"
    for part in ("train", "sample", "score"):
        assert record.from_value(put(good, "revisions", part, to=7), rules).stale
    assert record.from_value(put(good, "revisions", "method", "extrapolation", to=7), rules).stale


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ('{"schema": NaN}', "holds NaN"),
        ('{"schema": 1, "schema": 1}', "has a duplicate key"),
        ("[" * 100_000, "is not valid JSON"),
        ("\ufeff{}", "is not valid JSON"),
        ('{"seed": 1' + 400 * "0" + "}", "holds an integer of 401 digits"),
        ('{"seed": ' + 5000 * "9" + "}", "holds an integer of 5000 digits"),
    ],
)
def test_a_broken_file_is_refused_by_its_path(rules: protocol.Protocol, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "records" / "small" / "yarn" / "16x16-32x16-s0.json"
    files.write_text(path, text)
    with pytest.raises(UserError, match=f"{path.name}.*{words}"):
        record.read_all(tmp_path / "records")


def test_read_all_names_everything_that_is_out_of_place(rules: protocol.Protocol, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    assert record.read_all(folder) == []
    for pair in rules.pairs():
        record.write(value_of(rules, "yarn", pair), folder)
    (folder / ".gitkeep").touch()
    assert [item.test for item in record.read_all(folder)] == ["8x8", "16x16", "24x24", "32x32", "32x16"]

    original = folder / "small" / "yarn" / "16x16-8x8-s0.json"
    twin = original.with_name("16x16-8x8-s1.json")  # the same cell and seed twice
    twin.write_bytes(original.read_bytes())
    with pytest.raises(UserError, match=r"1 refused: .*s1.json holds another cell; it belongs at small/yarn/16x16-8x8-s0"):
        record.read_all(folder)
    twin.unlink()
    for place, words in (
        ("notes.txt", "is not <protocol>"),
        ("small/yarn/readme.md", "is not <protocol>"),
        ("nowhere/yarn/16x16-8x8-s0.json", "unknown protocol 'nowhere'"),
        ("quiet/yarn/16x16-8x8-s0.json", "not ranked"),
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(original.read_bytes())
        with pytest.raises(UserError, match=f"1 refused: .*{words}"):
            record.read_all(folder)
        (folder / place).unlink()
    original.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        record.read_all(folder)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("detector", "hash"), "a" * 12),
        (("data", "hash"), "a" * 12),
        (("reference", "hash"), "a" * 12),
        (("uncertainty", "level"), 0.9),
    ],
)
def test_a_table_never_mixes_detectors_data_or_references(
    rules: protocol.Protocol, tmp_path: Path, path: tuple[str, ...], to: Any
) -> None:
    for method in ("ledit", "ntk", "yarn"):
        record.write(value_of(rules, method, PAIR), tmp_path / "records")
    record.read_all(tmp_path / "records")
    record.write(put(value_of(rules, "ntk", PAIR), *path, to=to), tmp_path / "records")
    with pytest.raises(UserError, match=r"1 refused: small/ntk/16x16-32x16-s0.json: .*unlike the other records'"):
        record.read_all(tmp_path / "records")


def test_a_table_never_mixes_losses_on_other_images(rules: protocol.Protocol, tmp_path: Path) -> None:
    """They are compared image by image."""
    for method, images in (("ledit", "b" * 12), ("ntk", "a" * 12), ("yarn", "b" * 12)):
        value = value_of(rules, method, PAIR)
        replicates = [0.2] * value["uncertainty"]["resamples"]
        loss = {"value": 0.2, "low": 0.1, "high": 0.3, "replicates": replicates, "levels": [0.1, 0.3], "times": [0.2, 0.8]}
        record.write(put(value, "scores", "loss", to=loss | {"images": images}), tmp_path / "records")
    with pytest.raises(UserError, match=r"1 refused: small/ntk/.*: scores.loss.images at 32x16 is a{12}, unlike the other"):
        record.read_all(tmp_path / "records")


def test_a_title_belongs_to_one_method(rules: protocol.Protocol, tmp_path: Path) -> None:
    record.write(value_of(rules, "ledit", PAIR), tmp_path / "records")
    record.write(put(value_of(rules, "yarn", PAIR), "method", "title", to="LEDiT"), tmp_path / "records")
    with pytest.raises(UserError, match=r"1 refused: small/yarn/.*: method.title is 'LEDiT', which is the title of 'ledit'"):
        record.read_all(tmp_path / "records")


def test_a_line_end_in_a_files_name_does_not_break_the_refusal(tmp_path: Path) -> None:
    files.write_text(tmp_path / "records" / "two\nlines.json", "{}")
    with pytest.raises(UserError, match=r"1 refused: .*two\\nlines.json is not <protocol>"):
        record.read_all(tmp_path / "records")


def test_many_refusals_are_one_short_line(rules: protocol.Protocol, tmp_path: Path) -> None:
    for number in range(30):
        files.write_text(tmp_path / "records" / "small" / "yarn" / f"{number}.json", "{}")
    with pytest.raises(UserError, match=r"30 refused: .*; and 25 more") as caught:
        record.read_all(tmp_path / "records")
    assert "\n" not in str(caught.value)


def test_the_code_of_a_record_is_that_which_the_process_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit in the hours of a sweep is not what made its later cells."""
    monkeypatch.setattr(record.files, "ROOT", tmp_path)
    record.git_state.cache_clear()

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    before = record.git_state("methods")
    git("commit", "-q", "--allow-empty", "-m", "second")
    assert record.git_state("methods") == before
    record.git_state.cache_clear()
    assert record.git_state("methods") != before
    record.git_state.cache_clear()
    (tmp_path / ".git" / "index").write_text("damaged")
    assert record.git_state("methods").dirty, "what cannot be asked counts as changed"
    record.git_state.cache_clear()
    shutil.rmtree(tmp_path / ".git")
    state = record.git_state("methods")
    assert (state.commit, state.dirty) == (None, False)
    assert "not a git repository" in state.why
    record.git_state.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert record.git_state("methods") == (None, False, "git is not installed")
    record.git_state.cache_clear()


@pytest.mark.parametrize("name", ["benchmark/a.py", "methods/new.py", "datasets/x.yaml"])
def test_code_that_no_commit_holds_is_dirty(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whether it is new or was edited; what lies elsewhere makes no numbers."""
    monkeypatch.setattr(record.files, "ROOT", tmp_path)
    request.addfinalizer(record.git_state.cache_clear)

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    def dirty() -> bool:
        record.git_state.cache_clear()
        return record.git_state(*record.CODE).dirty

    git("init", "-q")
    for folder in record.CODE:
        files.write_text(tmp_path / folder / "old", "1")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    files.write_text(tmp_path / name, "1")
    assert dirty()
    git("add", "-A")
    git("commit", "-q", "-m", "second")
    files.write_text(tmp_path / "notes.md", "1")
    assert not dirty()
    files.write_text(tmp_path / name, "2")
    assert dirty()
