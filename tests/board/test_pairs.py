"""Pairs on which the papers agree, and how many of them have the papers' order here."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import board_of

from benchmark import protocol
from benchmark.board import pairs, published
from benchmark.board.published import Published, PublishedRow, PublishedTable, Source, Square, StablePairs
from benchmark.board.table import Column
from benchmark.files import UserError

SIZE = "512x512"


def row(name: str, fid: float) -> PublishedRow:
    return PublishedRow(name, "scratch", name, {SIZE: [fid, None, None, None, None]})


def figures(*tables: dict[str, float], squares: list[Square] | None = None, beside: bool = False) -> Published:
    """Published tables of methods a, b, c, d at 2x, the last of them without a vote where `beside` says so."""
    made = [
        PublishedTable(f"t{k}", "l", "p", "u", "1", "256x256", 1, "", {}, [row(*item) for item in table.items()])
        for k, table in enumerate(tables)
    ]
    sources = [Source(f"t{k}", f"table {k}", {name: name for name in table}) for k, table in enumerate(tables)]
    last = sources.pop() if beside else None
    return Published({"l": "l"}, made, [], [], [StablePairs("*", sources, last, squares or [])])


FIRST = {"ledit": 1.0, "yarn": 2.0, "ntk": 3.0, "sincos": 4.0}
SECOND = {"ledit": 1.0, "yarn": 2.0, "ntk": 9.0, "sincos": 4.0}


def test_a_pair_is_stable_where_all_that_print_it_agree() -> None:
    found = figures(FIRST, SECOND, {"ledit": 5.0, "yarn": 2.0})
    agreed, several = pairs.stable(found.stable[0], found, SIZE)
    assert several == 6
    assert agreed == [
        ("ledit", "ntk"),
        ("ledit", "sincos"),
        ("yarn", "ntk"),
        ("yarn", "sincos"),
    ]  # third table: yarn before ledit
    alone = figures(FIRST, {"ledit": 1.0, "yarn": 2.0})
    assert pairs.stable(alone.stable[0], alone, SIZE) == ([("ledit", "yarn")], 1)  # one table alone agrees with nobody


def test_the_papers_own_agreement() -> None:
    """By hand from LEDiT's tables: at 384 its recipes differ on RIFLEx and YaRN, at 512 on NTK, RIFLEx and sin-cos."""
    found = published.load()
    item = found.stable[0]
    agreed, several = pairs.stable(item, found, "384x384")
    assert (len(agreed), several) == (9, 10)
    assert not {("rifle", "yarn"), ("yarn", "rifle")} & set(agreed)
    agreed, several = pairs.stable(item, found, SIZE)
    assert (len(agreed), several) == (7, 10)
    assert {better for better, _ in agreed} == {"ledit", "yarn"}


def test_the_share_is_of_pairs_that_are_here(rules: protocol.Protocol) -> None:
    made = {("ledit", 0): (1, 5, 1), ("yarn", 0): (1, 2, 1), ("ntk", 0): (1, 9, 1), ("ntk", 1): (1, 0, 1)}
    board = board_of(rules, made, resamples=200)
    column = next(column for column in board.pairs if column.ratio_label == "2x")
    wanted = [("ledit", "yarn"), ("ledit", "ntk"), ("yarn", "sincos")]
    found = pairs.share(board, column, wanted, "fid")
    assert (found.value, found.count) == (0.5, 2)  # sin-cos is not here, and NTK's second seed is nobody else's
    assert found.other == [(("ledit", "yarn"), 5.0, 2.0)]
    assert found.interval[0] <= found.value <= found.interval[1]
    assert pairs.share(board, column, [("yarn", "sincos")], "fid") is None
    assert pairs.share(board, Column("beyond", "256x256", "1024x1024"), wanted, "fid") is None


def test_the_grid_shows_the_shares_and_what_differs(rules: protocol.Protocol) -> None:
    made = {("ledit", 0): (1, 5, 1), ("yarn", 0): (1, 2, 1), ("ntk", 0): (1, 9, 1), ("sincos", 0): (1, 1, 1)}
    last = {"ledit": 3.0, "ntk": 1.0, "yarn": 4.0}
    grid = pairs.agreement(board_of(rules, made), figures(FIRST, SECOND, last, beside=True))
    (line,) = grid.rows
    words = [cell.text for cell in line.cells]
    assert words[1] == "5 of 6"  # the tables differ on NTK and sin-cos
    assert words[2] == "1 of 3"  # of ledit-yarn, ledit-ntk and yarn-ntk
    assert words[3] == "0.40"  # ledit-ntk and yarn-ntk
    assert words[-1].count("<") == 3
    assert "sin-cos 1 < LEDiT 5" in words[-1]
    square = [Square("yarn", "ledit", "elsewhere")]
    grid = pairs.agreement(board_of(rules, made), figures(FIRST, SECOND, squares=square))
    assert grid.rows[0].cells[3].detail.startswith("3 of 6")
    assert "elsewhere" in grid.text
    assert pairs.agreement(board_of(rules, {("other", 0): (1, 1, 1)}), figures(FIRST, SECOND)) is None


@pytest.mark.parametrize(("right", "wrong"), [("table: ledit-256-b2", "table: none"), ('sincos: "DiT-SinCos"}', 'sincos: "X"}')])
def test_names_of_the_file_are_checked(right: str, wrong: str, tmp_path: Path) -> None:
    head, tail = published.FILE.read_text(encoding="utf-8").split("\nstable:\n")
    path = tmp_path / "published.yaml"
    path.write_text(f"{head}\nstable:\n{tail.replace(right, wrong, 1)}", encoding="utf-8")
    with pytest.raises(UserError, match=r"published\.yaml"):
        published.load(path)
