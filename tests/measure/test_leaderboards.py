"""The script that times `make leaderboards`: as many records as asked, of which each is one that the board can read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from benchmark.measure import leaderboards
from benchmark.results import record


def test_copies_are_other_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "shapes-attention-jin"
    shutil.copytree(record.FOLDER / name, tmp_path / "committed" / name)
    monkeypatch.setattr(record, "FOLDER", tmp_path / "committed")
    committed = record.read_all(record.FOLDER)
    assert leaderboards.copies(tmp_path / "more", len(committed) + 5) == 1
    copied = record.read_all(tmp_path / "more")
    assert len(copied) == len(committed) + 5
    assert len({(item.method, item.seed, item.pair) for item in copied}) == len(copied)


def test_tables_are_made_of_them(capsys: pytest.CaptureFixture) -> None:
    assert leaderboards.main(["12"]) == 0
    said = re.fullmatch(r"12 records, (\d+) protocols: (\d+) files in .* GiB\n", capsys.readouterr().out)
    assert int(said[1]) >= 1
    assert int(said[2]) > 3, "tables and a page"
