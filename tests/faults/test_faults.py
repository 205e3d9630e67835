"""Bad inputs that are refused before any work: one line and exit code 2. The whole table, and kills, are `make faults`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from benchmark import __main__ as command_line
from benchmark.board import generate
from faults.table import CASES

QUICK = [case for case in CASES if case.quick]


@pytest.fixture
def handlers():
    """Those that the command line replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name[:60].encode("ascii", "replace").decode())
def test_a_bad_input_is_one_line_and_exit_code_2(
    case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, handlers: None
) -> None:
    words = case.words(tmp_path)
    if words[0] == "@records":
        monkeypatch.setattr(command_line, "app", lambda: generate.generate(Path(words[1]), tmp_path / "out"))
    where = [] if {"--samples", "--out"} & set(words) else ["--out", str(tmp_path / "out")]  # scoring files has no use for it
    monkeypatch.setattr(sys, "argv", ["benchmark", *words, *where])
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    assert command_line.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert case.said in line
    assert not (tmp_path / "out").exists()


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
    assert all(case.said for case in CASES), "a case takes any message"
