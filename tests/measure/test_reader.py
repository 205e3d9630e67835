"""The script that times the reader: both readers have a rate, and an H100's appetite follows the core's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.measure import reader
from benchmark.model.flops import DEVICES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reader.photos(tmp_path_factory.mktemp("photos") / "photos", 12)


def test_both_readers_have_a_rate(folder: Path) -> None:
    assert reader.plain(folder, (64, 96), 4) > 0
    assert min(reader.ours(folder, (64, 96), 4)) > 0


def test_a_whole_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(reader, "first_batch", lambda root: 0.25)
    assert reader.main([str(folder), "--size", "64x96", "--batch", "4", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "times its first" in said
    assert "first batch of 1,000 shards: 0.25 s" in said
    assert reader.main([str(folder), "--rounds", "0"]) == 2
    assert "both are at least 1" in capsys.readouterr().err


def test_appetite() -> None:
    """118.64 GFLOP of multiply-adds (Peebles and Xie 2023, table 1) are twice as many operations; backward counts twice."""
    device = DEVICES["h100"]
    assert reader.appetite("XL") == pytest.approx(device.efficiency * device.bf16 * 1e12 / (6 * 118.64e9), rel=0.02)
