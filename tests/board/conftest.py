"""A folder of leaderboards for every test, with a protocol of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import SMALL, TINY, protocols

from benchmark import protocol
from benchmark.board import plots

DRAW = plots.draw


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of leaderboards, with the protocol shapes-tiny and an unranked one; its plots are empty."""
    protocols(tmp_path / "protocols", monkeypatch, shapes_tiny=TINY, quiet=SMALL + "ranked: false\n")
    svg = '<svg viewBox="0 0 1 1"></svg>'
    drawn = {
        key: f"{name} against the ratio of test to training size"
        for key, name in (("fid", "FID"), ("is", "IS"), ("sfid", "sFID"))
    }
    drawn |= plots.CAPTIONS
    monkeypatch.setattr(plots, "draw", lambda board, style: {
        f"{board.protocol.name}-{kind}": (caption, "", svg) for kind, caption in drawn.items()
    })  # fmt: skip
    return tmp_path / "leaderboards"


@pytest.fixture
def drawn(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with real plots, which take their time."""
    monkeypatch.setattr(plots, "draw", DRAW)
    return home


@pytest.fixture
def rules(home: Path) -> protocol.Protocol:
    return protocol.load("shapes-tiny")
