"""The script that compares the order of methods under two recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import TINY, protocols, value_of

from benchmark import protocol
from benchmark.measure import stability
from benchmark.results import record


def test_tau_over_what_both_have() -> None:
    before = {"a": 1.0, "b": 2.0, "c": 3.0, "gone": 0.0}
    assert stability.tau(before, {"c": 1.0, "b": 2.0, "a": 3.0, "new": 9.0}) == (-1.0, ["a", "b", "c"])
    assert stability.tau(before, {"a": 1.0, "b": 9.0, "c": 3.0})[0] == pytest.approx(1 / 3)
    assert stability.tau(before, {"a": 1.0, "b": 2.0}) == (None, ["a", "b"])


def test_a_custom_run_against_the_committed_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    protocols(tmp_path / "protocols", monkeypatch, shapes_a=TINY)
    rules, overrides = protocol.load("shapes-a"), ["core.width=96"]
    custom = protocol.load("shapes-a", overrides)
    folder = tmp_path / "runs" / "records" / custom.hash
    for place, method in enumerate(("yarn", "ntk", "ledit")):
        for pair in rules.pairs():
            record.write(value_of(rules, method, pair, 0, 10.0 + place), tmp_path / "committed")
            for seed, away in ((0, 0.0), (1, 1.0)):  # here the order is ntk, yarn, ledit
                value = value_of(custom, method, pair, seed, (20.0, 12.0, 30.0)[place] + away)
                record.write(value, folder)
    read = record.read_all
    monkeypatch.setattr(record, "read_all", lambda: read(tmp_path / "committed"))
    arguments = ["--protocol", "shapes-a", "--out", str(tmp_path / "runs")]
    assert stability.main([*overrides, *arguments]) == 0
    shown = capsys.readouterr().out
    assert shown.count("0.33") == 2  # FID and sFID, at the one square size beyond; one pair of three is turned
    assert stability.main(["core.width=48", *arguments]) == 2
    assert "make sweep" in capsys.readouterr().err


def test_a_protocol_against_another_ones_committed_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    protocols(tmp_path / "protocols", monkeypatch, shapes_a=TINY, shapes_b=TINY.replace("steps: 10", "steps: 3"))
    for name, fids in (("shapes-a", (10.0, 11.0, 12.0)), ("shapes-b", (20.0, 12.0, 30.0))):
        rules = protocol.load(name)
        for method, fid in zip(("yarn", "ntk", "ledit"), fids, strict=True):
            for pair in rules.pairs():
                record.write(value_of(rules, method, pair, 0, fid), tmp_path / "committed")
    read = record.read_all
    monkeypatch.setattr(record, "read_all", lambda: read(tmp_path / "committed"))
    monkeypatch.setattr(record, "FOLDER", tmp_path / "committed")
    assert stability.main(["--protocol", "shapes-a", "--beside", "shapes-b"]) == 0
    assert capsys.readouterr().out.count("0.33") == 2
    assert stability.main(["--protocol", "shapes-a"]) == 2
    assert stability.main(["--protocol", "shapes-a", "--beside", "shapes-b", "core.width=96"]) == 2
    assert stability.main(["--protocol", "shapes-a", "--beside", "shapes-c"]) == 2
    assert "unknown protocol 'shapes-c'" in capsys.readouterr().err


@pytest.mark.parametrize(("power", "slope"), [(1, "1.0"), (0, "0.0")])
def test_the_spread_over_seeds_against_the_value(power, slope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """FID varies by a tenth of itself, or by 0.1 whatever it is."""
    protocols(tmp_path / "protocols", monkeypatch, shapes_a=TINY)
    rules = protocol.load("shapes-a")
    for method, fid in (("yarn", 10.0), ("ntk", 20.0), ("ledit", 40.0)):
        for pair in rules.pairs():
            for seed, away in enumerate((-1, 0, 1)):
                record.write(value_of(rules, method, pair, seed, fid + 0.1 * fid**power * away), tmp_path / "committed")
    read = record.read_all
    monkeypatch.setattr(record, "read_all", lambda: read(tmp_path / "committed"))
    assert stability.main(["--protocol", "shapes-a", "--spread"]) == 0
    assert f"│ FID     │ {slope} " in capsys.readouterr().out
    assert stability.main(["--spread", "core.width=96"]) == 2
