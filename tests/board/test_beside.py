"""Tables beside the measures: switches, parts, agreement by every measure."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from synthetic import TINY, board_of, protocols, tiny, value_of

from benchmark import protocol
from benchmark.board import beside, published, table
from benchmark.board.grid import Grid
from benchmark.files import UserError
from benchmark.results import record


def texts(grid: Grid) -> list[list[tuple[str, str, bool]]]:
    return [[(cell.text, cell.detail, cell.best) for cell in row.cells] for row in grid.rows]


def heads(grid: Grid) -> list[str]:
    return [f"{head.title}|{head.below}".rstrip("|") for head in grid.heads]


def test_agreement_by_every_measure_that_the_paper_prints(rules: protocol.Protocol) -> None:
    """Each against the paper's same measure: by sFID, RIFLEx comes before YaRN there; constants have no order."""
    fids = {"ledit": 10, "yarn": 20, "rifle": 30, "ntk": 40}
    board = board_of(rules, {(name, 0): (1, fid, 1) for name, fid in fids.items()})
    side = beside.by_measure(board, published.load())
    assert heads(side) == ["By", "2x"]
    assert texts(side) == [
        [("FID ↓", "", False), ("1.00", "1.00 to 1.00", False)],
        [("sFID ↓", "", False), ("0.67", "", False)],  # one seed, and no resamples
        [("IS ↑", "", False), ("1.00", "1.00 to 1.00", False)],
    ]
    assert "order of 4 has a tau of at least 0.6 in 17% of cases, of at least 0.8 in 4%" in side.text  # 4 and 1 of 24
    swapped = {"ledit": 10, "yarn": 30, "rifle": 20, "ntk": 40}
    rows = {(name, 0): (1, fid, 1) for name, fid in fids.items()} | {(name, 1): (1, fid, 1) for name, fid in swapped.items()}
    fid, sfid, *_ = texts(beside.by_measure(board_of(rules, rows), published.load()))
    assert sfid[1][1] == "0.00 to 1.00"  # two seeds that change places
    assert fid[1][1] == "0.00 to 1.00"  # two seeds: Student's t with one degree of freedom
    more = rows | {(name, 2): row for (name, _), row in rows.items()}
    fid, sfid, *_ = texts(beside.by_measure(board_of(rules, more), published.load()))
    assert sfid[1][1] == "0.33 to 1.00"
    few = board_of(rules, {("ledit", 0): (1, 56, 1), ("yarn", 0): (1, 109, 1)})
    assert beside.by_measure(few, published.load()) is None


def test_switches_off_and_on_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the square sizes beyond training's that both protocols have; a protocol of switches may lack the others."""
    on = "switches: {attention_scale: jin}\n"
    off = TINY.replace("[16x16,", "[24x24, 24x16, 16x16,")
    fewer = TINY.replace("[16x16, 32x32, 16x32]", "[24x24, 32x32]") + on
    other = fewer.replace("steps: 8", "steps: 9")
    protocols(tmp_path / "protocols", monkeypatch, shapes_off=off, shapes_on=fewer, shapes_other=other)
    for name, fids in (("shapes-off", {"yarn": 40.0, "ledit": 20.0, "ntk": 60.0}), ("shapes-on", {"yarn": 30.0, "ledit": 25.0}),
                       ("shapes-other", {"yarn": 1.0})):  # fmt: skip
        for method, fid in fids.items():
            for pair in protocol.load(name).pairs():
                for seed in range(2 if name == "shapes-off" else 1):
                    record.write(value_of(protocol.load(name), method, pair, seed, fid + seed), tmp_path / "records")
    records = record.read_all(tmp_path / "records")
    boards = {name: table.build(protocol.load(name), records) for name in ("shapes-off", "shapes-on", "shapes-other")}
    side = beside.switches(boards["shapes-off"], boards)
    assert heads(side) == ["Method", "Seeds", "1.5x|off", "1.5x|attention scale jin", "2x|off", "2x|attention scale jin"]
    shown = [[(cell[0], cell[2]) if place in (2, 4) else cell for place, cell in enumerate(row)] for row in texts(side)]
    assert shown == [  # over seed 0, which both have
        [("LEDiT", "", False), ("0", "", False), *[("20.0", False), ("25.0", "+5.0", False)] * 2],
        [("YaRN", "", False), ("0", "", False), *[("40.0", False), ("30.0", "-10.0", True)] * 2],
    ]
    assert all(" to " in row[place][1] for row in texts(side) for place in (2, 4))
    for there, said in (("float32", False), ("bf16", True)):  # older records do not say: then nothing is known to differ
        assert "in different precision" not in beside.switches(boards["shapes-off"], boards).text
        for item in boards["shapes-on"].records:
            item.value["hardware"]["precision"] = "float32"
        for item in boards["shapes-off"].records:
            item.value["hardware"]["precision"] = there
        assert ("in different precision, which alone moves" in beside.switches(boards["shapes-off"], boards).text) == said
    assert beside.switches(boards["shapes-on"], boards) is None
    assert beside.switches(boards["shapes-other"], boards) is None


def test_a_change_that_is_not_significant_is_not_bold() -> None:
    """Two values 0.1 apart, whose images alone move their difference by 1.4."""
    noise = np.random.RandomState(0).standard_normal((2, 200))
    on, off = (
        table.Entry(value, by_seed={0: value}, replicates={0: value + each})
        for value, each in zip((10.0, 10.1), noise, strict=True)
    )
    cell = beside._change(on, off, 1)
    assert (cell.detail, cell.best) == ("-0.1", False)


def test_parts_of_a_method_stand_below_all_of_it(rules: protocol.Protocol, tmp_path: Path) -> None:
    tiny(tmp_path / "records", rules)
    board = table.build(rules, record.read_all(tmp_path / "records"))
    path = tmp_path / "parts.yaml"
    path.write_text("ledit: {ntk: without, nope: absent here}\nabsent: {yarn: x}\n")
    (side,) = beside.parts(board, path)
    assert side.title == "Ablation of LEDiT"
    assert [row[:2] for row in texts(side)] == [
        [("LEDiT", "", False), ("all parts", "", False)],
        [("NTK-aware", "", False), ("without", "", False)],
    ]
    assert texts(side)[1][2:] == [("10.0", "-0.2", True), ("90.0", "+70.0", False), ("85.0", "+59.5", False)]
    assert "learning rate" not in side.text
    assert beside.parts(board, tmp_path / "none.yaml") == []
    rules.train.lr_of = {"ledit": 2 * rules.train.lr}  # then the rows differ in more than the part
    (side,) = beside.parts(board, path)
    rates = [f"(learning rate {rate:g})" for rate in (2 * rules.train.lr, rules.train.lr)]
    assert [row[1][0] for row in texts(side)] == [f"all parts {rates[0]}", f"without {rates[1]}"]
    assert "different learning rates" in side.text
    path.write_text("- ledit\n")
    with pytest.raises(UserError, match=r"parts\.yaml must (map methods to their parts|hold fields)"):
        beside.parts(board, path)


def test_the_parts_that_are_listed_name_methods_or_planned_ones() -> None:
    import yaml

    listed = yaml.safe_load(beside.PARTS.read_text())
    assert set(listed) == {"rpe2d", "ledit"}
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for members in listed.values() for name in members)
