"""Plots: well-formed, the same colour for a method everywhere, names under the pointer."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from synthetic import TINY, board_of, fill, protocols, tiny, value_of

from benchmark import protocol
from benchmark.board import generate, plots, table
from benchmark.results import record


def test_a_protocols_own_methods_and_the_best_have_a_colour(rules: protocol.Protocol) -> None:
    rows = {(f"other{number}", 0): (1, 2 + number, 3) for number in range(9)}
    board = board_of(dataclasses.replace(rules, methods=["own"]), rows | {("own", 0): (9, 90, 90)})
    assert sorted(plots.looks([board])) == ["other0", "other1", "other2", "other3", "own"]
    many = [f"own{number:02d}" for number in range(20)]
    board = board_of(dataclasses.replace(rules, methods=many), {(name, 0): (1, 2, 3) for name in many})
    looks = plots.looks([board])
    assert sorted(looks) == many[: len(plots.COLOURS)]
    for part in ("colour", "marker", "dash"):
        assert len({getattr(look, part) for look in looks.values()}) == len(plots.COLOURS)


def test_a_method_keeps_its_colour_whatever_its_rank_and_its_protocol(drawn: Path, rules: protocol.Protocol) -> None:
    names = ["ledit", "yarn", "rifle", "ntk"]
    up = board_of(rules, {(name, 0): (1, place, 1) for place, name in enumerate(names, start=1)})
    down = board_of(rules, {(name, 0): (1, 9 - place, 1) for place, name in enumerate(names, start=1)})
    assert plots.looks([up]) == plots.looks([down]) == plots.looks([down, up])
    few = board_of(rules, {(name, 0): (1, 2, 1) for name in names[:2]})
    both = plots.looks([few, up])
    text = {board: plots.draw(board_, both)["shapes-tiny-fid"][2] for board, board_ in (("few", few), ("up", up))}
    for name in names[:2]:
        colour = both[name].colour.replace(plots.INK, "currentColor")
        for svg in text.values():
            group = svg[svg.index(f'data-m="{name}"') :]
            assert re.search(r"stroke: (\S+?);", group)[1] == colour


def test_plots_are_well_formed_and_say_what_they_show(drawn: Path, rules: protocol.Protocol) -> None:
    import xml.etree.ElementTree as ElementTree

    tiny(drawn / "records", rules)
    generate.generate(drawn / "records", drawn)
    for kind in ("fid", "is", "tradeoff", "cost"):
        text = (drawn / "plots" / f"shapes-tiny-{kind}.svg").read_text()
        tree = ElementTree.fromstring(text)
        words = "".join(tree.itertext())
        for title in ("LEDiT", "YaRN", "NTK-aware"):
            assert title in words, kind
        assert "currentColor" in text
        assert "#010203" not in text
        assert not re.search(r"20\d\d-\d\d-\d\d|Matplotlib", text)
        ids = re.findall(r'id="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert all(name.startswith(f"shapes-tiny-{kind}-") for name in ids)


def test_a_protocol_of_failures_has_no_plots_and_still_a_page(drawn: Path, rules: protocol.Protocol) -> None:
    for pair in rules.pairs():
        record.write(value_of(rules, "yarn", pair, 0, None), drawn / "records")
    generate.generate(drawn / "records", drawn)
    assert [path.name for path in (drawn / "plots").iterdir()] == ["shapes-tiny-cost.svg"]
    assert "YaRN" in (drawn / "shapes-tiny.md").read_text()


def test_minutes_are_drawn_of_one_type_of_machine_alone(drawn: Path, rules: protocol.Protocol) -> None:
    fill(drawn / "records", rules, {"yarn": 10.0, "ntk": 20.0})
    generate.generate(drawn / "records", drawn)
    assert (drawn / "plots" / "shapes-tiny-cost.svg").is_file()
    board = table.build(rules, record.read_all(drawn / "records"))
    lines = plots._cost(board, {}).axes[0].get_lines()
    assert sum(0.0 in line.get_xdata() for line in lines) == 2
    for machine in ("another machine", None):
        for item in board.records:
            item.value["training"] |= {"hours": 1.0, "machine": machine}
            if machine is None:  # older records do not say
                del item.value["training"]["machine"]
        assert plots._cost(board, {}) is None, "without trainings it would show the start-up of cells"
    value = value_of(rules, "ledit", rules.pairs()[0], 0, 30.0)
    value["hardware"]["name"] = "another machine"
    record.write(value, drawn / "records")
    generate.generate(drawn / "records", drawn)
    assert not (drawn / "plots" / "shapes-tiny-cost.svg").is_file()
    assert "shapes-tiny-cost.svg" not in (drawn / "shapes-tiny.md").read_text()


def test_more_methods_than_colours(drawn: Path, rules: protocol.Protocol) -> None:
    fill(drawn / "records", rules, {f"m{number:02d}": 10.0 + number for number in range(12)})
    generate.generate(drawn / "records", drawn)
    text = (drawn / "plots" / "shapes-tiny-fid.svg").read_text()
    legend = text[text.index("-legend") :]
    assert f"{12 - plots.BEST} others" in legend
    assert ">m03<" in legend
    assert ">m04<" not in legend
    assert "<title>m04</title>" in text  # grey, with its name under the pointer


def test_every_training_has_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = "{16x16: [16x16, 32x32], 32x32: [32x32, 64x64]}"
    protocols(tmp_path / "protocols", monkeypatch, two=TINY.replace("{16x16: [16x16, 32x32, 16x32]}", cells))
    rows = {("a", 0): (1, 2, 3, 4), ("b", 0): (2, 3, 4, 5)}
    board = board_of(protocol.load("two"), rows)
    drawn = {name.rpartition("-")[2]: plots.panels(svg) for name, (_, _, svg) in plots.draw(board, {}).items()}
    assert drawn == {"fid": 2, "is": 2, "sfid": 2, "tradeoff": 1, "cost": 1}


def test_a_plot_in_the_page_has_no_legend_and_no_theme_of_its_own(drawn: Path, rules: protocol.Protocol) -> None:
    board = board_of(rules, {("a", 0): (1, 2, 3), ("b", 0): (1, 3, 3)})
    for _, _, svg in plots.draw(board, plots.looks([board])).values():
        inner = plots.inline(svg)
        ElementTree.fromstring(inner)
        assert "-legend" in svg
        assert "-legend" not in inner
        assert "<style>:root" not in inner
        wide = [float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1]) for text in (svg, inner)]
        assert wide[0] - wide[1] == pytest.approx(72 * plots.LEGEND)


def points(figure: Figure) -> list[list[tuple[float, float]]]:
    """The values of each method."""
    return [[tuple(point) for point in line.get_xydata()] for line in figure.axes[0].get_lines() if line.get_marker() == "."]


def test_plots_show_the_numbers_of_the_table(rules: protocol.Protocol) -> None:
    board = board_of(rules, {("a", 0): (10, 20, 40), ("b", 0): (11, 50, 60)})
    assert points(plots._tradeoff(board, {})) == [[(10, 20)], [(11, 50)]]
    assert points(plots._by_ratio(board, "fid", {})) == [[(1, 10), (2, 20)], [(1, 11), (2, 50)]]


def test_the_plot_of_cost_shows_minutes_of_sampling_and_scoring(rules: protocol.Protocol) -> None:
    board = board_of(rules, {("a", 0): (10, 20, 40), ("b", 0): (11, 50, 60)})
    for item in board.records:
        item.value["hours"] = {"sample": 0.2, "score": 0.1}
    minutes = [y for line in points(plots._cost(board, {})) for x, y in line if x >= 1]
    assert minutes == pytest.approx([18] * 6)
