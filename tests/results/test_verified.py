"""Rows that somebody else has run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from synthetic import value_of

from benchmark import protocol
from benchmark.files import UserError
from benchmark.results import record, verified


@pytest.fixture
def row() -> list[record.Record]:
    rules = protocol.load("shapes")
    return [record.from_value(value_of(rules, "yarn", pair, 0, 30.0), rules) for pair in rules.pairs()]


def written(folder: Path, text: str) -> Path:
    path = folder / verified.NAME
    path.write_text(text, encoding="utf-8")
    return path


def test_what_reproduce_prints_is_an_entry(row, tmp_path):
    text = verified.entry_text(row, "AMD EPYC: 9B14", verified.REPRODUCED)
    path = written(tmp_path, text.replace('"?"', "Ada Lovelace"))
    ((key, (entry,)),) = verified.read(path, row).items()
    assert key == ("shapes", "yarn")
    assert (entry.seed, entry.by, entry.hardware, entry.verdict) == (0, "Ada Lovelace", "AMD EPYC: 9B14", "reproduced")
    assert verified.read(path, row, left_out=[key]) == {}
    assert verified.read(tmp_path / "none.yaml", row) == {}


def test_an_entry_does_not_outlive_its_scores(row, tmp_path):
    path = written(tmp_path, verified.entry_text(row, "a processor", verified.IDENTICAL).replace('"?"', "Ada"))
    rules = protocol.load("shapes")
    other = [record.from_value(value_of(rules, "yarn", pair, 0, 31.0), rules) for pair in rules.pairs()]
    with pytest.raises(UserError, match=r"Ada ran the row .*, which has since become .*; remove the entry"):
        verified.read(path, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "shape"}, "shape"),
        ({"method": "yarm"}, "yarm"),
        ({"seed": 7}, "has no records"),
        ({"verdict": "differs"}, "verdict"),
        ({"by": "?"}, "by"),
        ({"when": "today"}, "when"),
    ],
)
def test_a_wrong_entry_is_refused(change, message, row, tmp_path):
    values = yaml.safe_load(verified.entry_text(row, "a processor", verified.IDENTICAL).replace('"?"', "Ada"))
    (entry,) = values["shapes"]["yarn"]
    entry |= {key: value for key, value in change.items() if key not in ("protocol", "method")}
    made = {change.get("protocol", "shapes"): {change.get("method", "yarn"): [entry]}}
    with pytest.raises(UserError, match=message):
        verified.read(written(tmp_path, json.dumps(made)), row)
