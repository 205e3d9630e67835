"""Further tables: a protocol's switches, ablations of a method, agreement with papers, and the papers' own figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import files, registry
from benchmark.board import pairs, published
from benchmark.board.grid import NOT_RUN, Cell, Grid, Head, Line, number, places_of, shown
from benchmark.board.published import METRICS, Absent, Published, PublishedTable
from benchmark.board.table import Column, Entry, Row, Table, different, mean, over
from benchmark.files import UserError
from benchmark.inputs import read_yaml
from benchmark.protocol import Protocol, Switches
from benchmark.results.record import METRICS as RECORDED

PARTS = files.ROOT / "leaderboards" / "parts.yaml"
Tables = Mapping[str, Table | None]  # by name; None for a leaderboard that is the papers' alone


def _change(on: Entry, off: Entry, places: int) -> Cell:
    """An entry, its difference to another over the seeds that both have, and whether it is better and different."""
    common = [seed for seed in on.by_seed if seed in off.by_seed]
    if on.value is None or not common:
        return shown(on, places)
    moved = mean(on.by_seed[seed] - off.by_seed[seed] for seed in common)
    detail = number(moved, places, sign=True)
    if set(common) != set(on.by_seed) | set(off.by_seed):  # then the values that are shown do not subtract to it
        detail += f" (seed{'s' if len(common) > 1 else ''} {', '.join(map(str, common))})"
    return Cell(number(on.value, places), detail, moved < 0 and different(on, off))


def _plain(entry: Entry, places: int) -> Cell:
    cell = shown(entry, places)
    return Cell(cell.text, cell.detail)


def _switched(chosen: Switches) -> str:
    """The switches that are not at rest, as text."""
    rest = vars(Switches())
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in vars(chosen).items() if value != rest[key])


def _rests(rules: Protocol) -> dict[str, Any]:
    """What protocols of other switches have in common: everything but switches and sizes, and the trainings."""
    kept = {key: value for key, value in rules.rules().items() if key not in ("switches", "cells")}
    return kept | {"trainings": {train: rules.training(train) for train in rules.cells}}


def switches(board: Table, boards: Tables) -> Grid | None:
    """Every method's FID with the switches of the protocol off and on, at the square sizes beyond the training size.

    None unless a protocol differs in its switches alone; it may have fewer cells.
    """
    if board.protocol.switches != Switches():
        return None
    others = [other for other in boards.values() if other and other.rows and other.protocol.switches != Switches()]
    others = [other for other in others if _rests(other.protocol) == _rests(board.protocol)]
    cols = [column for column in board.pairs if column.group == "beyond" and column.is_square]
    cols = [column for column in cols if all(column in other.columns for other in others)]
    if not others or not cols:
        return None
    places = places_of(board, "fid")
    rows, devices = [], set()
    for row in board.rows:
        counterparts = [next((item for item in other.rows if item.method == row.method), None) for other in others]
        if not any(counterparts):
            continue
        have = [set(item.entries["fid", column].by_seed) for item in (row, *counterparts) if item for column in cols]
        seeds = sorted(set.intersection(*have))
        devices |= {
            (key, record.value["hardware"][key]) for table in (board, *others) for record in table.records
            if record.method == row.method and record.seed in seeds and record.pair in {(c.train, c.test) for c in cols}
            for key in ("device", "precision") if key in record.value["hardware"]  # older records lack the second
        }  # fmt: skip
        cells = [Cell(row.title, marks=row.marks), Cell(", ".join(map(str, seeds)) or "none in common")]
        for column in cols:
            off = over(row.entries["fid", column], seeds)
            cells.append(_plain(off, places))
            for item in counterparts:
                cells.append(Cell(NOT_RUN) if item is None else _change(over(item.entries["fid", column], seeds), off, places))
        rows.append(Line(cells, row.method))
    names = [_switched(other.protocol.switches) for other in others]
    heads = [Head("Method", words=True), Head("Seeds", words=True)]
    heads += [Head(column.ratio_label, name) for column in cols for name in ("off", *names)]
    text = (
        "The same checkpoints, sampled again with one switch of the protocol on for every method (a method's own temperature is "
        "off where the switch scales attention). FID ↓ over the seeds that all have, with the change below. Bold: significantly "
        "lower for these checkpoints, over images and, with three seeds or more, over seeds. There is no correction for multiple "
        "comparisons; about one in forty would be bold by chance. At the training size switches have no effect. Protocols: "
        f"{', '.join(other.protocol.name for other in others)}."
    )
    if len(devices) > len(dict(devices)):
        text += (
            " Off and on were sampled on different devices or in different precision, which alone moves FID a little: small "
            "changes mean nothing."
        )
    return Grid("The protocol's switches, off and on", heads, rows, text)


def _rate(row: Row, rules: Protocol) -> float:
    """The learning rate of the training that a row uses."""
    return rules.train.lr_of.get(row.trained_as, rules.train.lr)


def parts(board: Table, path: Path | str = PARTS) -> list[Grid]:
    """What the parts of a method bring: rows that differ from it in one part, as the file of parts lists them."""
    if not Path(path).is_file():
        return []
    listed = read_yaml(path)
    try:
        listed = {str(all_of): {str(name): str(what) for name, what in members.items()} for all_of, members in listed.items()}
    except AttributeError:
        raise UserError(f"{path} must map methods to their parts") from None
    rows: dict[str, Row] = {row.method: row for row in board.rows}
    cols = [column for column in board.columns if column.is_mean or column.group == "at" or column.ratio_label == "2x"]
    found = []
    for name, members in listed.items():
        if name not in rows or not set(members) & set(rows):
            continue
        places = places_of(board, "fid")
        first = rows[name]
        rates = {each: _rate(rows[each], board.protocol) for each in (name, *members) if each in rows}
        apart = len(set(rates.values())) > 1
        told = {each: f" (learning rate {rate:g})" if apart else "" for each, rate in rates.items()}
        lines = [Line([Cell(first.title, marks=first.marks), Cell(f"all parts{told[name]}")], name)]
        lines[0].cells.extend(_plain(first.entries["fid", column], places) for column in cols)
        for member, what in members.items():
            if member in rows:
                cells = [_change(rows[member].entries["fid", column], first.entries["fid", column], places) for column in cols]
                lines.append(
                    Line([Cell(rows[member].title, marks=rows[member].marks), Cell(what + told[member]), *cells], member)
                )
        heads = [Head("Method", words=True), Head("Parts", words=True), *(Head(*column.words) for column in cols)]
        text = (
            "FID ↓, with the difference from the complete method below, over the seeds that both have. Bold: significantly lower."
        )
        if apart:
            text += " The protocol gives these rows different learning rates, so differences are not due to the parts alone."
        found.append(Grid(f"Ablation of {first.title}", heads, lines, text))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The papers


def agreement(board: Table, figures: Published) -> list[Grid]:
    """How far the order of methods here is a paper's: by FID with both orders, and by every measure that it prints.

    Nothing of a rehearsal, whose trainings have not converged.
    """
    if board.protocol.rehearses:
        return []
    titles = {row.method: row.title for row in board.rows}
    rows = []
    for item in published.agreements(board, figures):
        words = "too few methods" if item.tau is None else f"{item.tau:.2f}"
        ends = f"{item.interval[0]:.2f} to {item.interval[1]:.2f}" if item.interval else ""
        over = "over images of seed" if len(item.seeds) == 1 else "over seeds"
        seeds = f"{over} {', '.join(map(str, item.seeds))}" if ends else ""
        theirs = zip(item.methods, item.theirs, strict=True)
        ours = sorted(zip(item.methods, item.ours, strict=True), key=lambda pair: (pair[1], pair[0]))
        orders = [" < ".join(f"{titles[method]} {value:.4g}" for method, value in order) for order in (theirs, ours)]
        lacking = [registry.about(method).title if method in registry.names() else method for method in item.missing]
        missing = f"not here yet: {', '.join(lacking)}" if lacking else ""
        places = f"{item.column.train} → {item.column.test} here, {item.size} there"
        cells = [
            Cell(item.ratio, places), Cell(words, f"{ends} {seeds}".strip()), Cell(pairs.other_tables(board, figures, item)),
            Cell(orders[0]), Cell(orders[1], missing), Cell(item.paper),
        ]  # fmt: skip
        rows.append(Line(cells))
    if not rows:
        return []
    stable = pairs.agreement(board, figures)
    text = (
        "Rank correlation between methods' FID here and FID in a paper on ImageNet: 1 is the same order, -1 the reverse. Values "
        "here are means over the seeds that all compared methods have, with 95 % intervals over those seeds (over images, if "
        "there is one); the paper's numbers are taken as exact. Other tables are those of the same paper with other recipes or "
        "cores, over the methods that they have."
    )
    names = ("Ratio", "Kendall's tau", "Tau with other tables", "The paper's FID", "FID here", "Source")
    heads = [Head(name, words=True) for name in names]
    measures = by_measure(board, figures)
    first = Grid("Agreement with published rankings", heads, rows, text)
    return [first, *(grid for grid in (stable, measures) if grid)]


def by_measure(board: Table, figures: Published) -> Grid | None:
    """Kendall's tau for every measure that the paper prints; None where there is no order to compare."""
    found = {metric: published.agreements(board, figures, metric) for metric in METRICS if metric in board.metrics}
    found = {metric: items for metric, items in found.items() if any(item.tau is not None for item in items)}
    if not found:
        return None
    ratios = list(dict.fromkeys(item.ratio for items in found.values() for item in items))
    count = max(len(item.methods) for items in found.values() for item in items)
    rows = []
    for metric, items in found.items():
        by_ratio = {item.ratio: item for item in items if item.tau is not None}
        cells = [Cell(f"{RECORDED[metric].title} {RECORDED[metric].arrow}")]
        for ratio in ratios:
            item = by_ratio.get(ratio)
            ends = f"{item.interval[0]:.2f} to {item.interval[1]:.2f}" if item and item.interval else ""
            cells.append(Cell(number(item.tau, 2), ends) if item else Cell(NOT_RUN))
        rows.append(Line(cells))
    text = (
        "Kendall's tau between the paper's order and the order here by the same measure, for every measure that the paper "
        "reports. The paper's detector is Inception. Intervals are over seeds, or over images where there is one seed; they "
        f"do not cover the choice of methods. A random order of {count} has a tau of at least 0.6 in "
        f"{published.chance(count, 0.6):.0%} of cases, of at least 0.8 in {published.chance(count, 0.8):.0%}."
    )
    heads = [Head("By", words=True), *(Head(ratio) for ratio in ratios)]
    return Grid("Which measures agree with the paper's order?", heads, rows, text)


@dataclass(frozen=True)
class Papers:
    """A paper's table, with our FID and IS beside it where records exist."""

    title: str
    source: PublishedTable
    here: dict[str, str]  # our protocols that stand beside it -> the training that they are
    grids: list[Grid]  # FID and IS; the rest, if there is any


def papers(name: str, figures: Published, boards: Tables) -> list[Papers]:
    """The published tables of a leaderboard."""
    return [_paper(source, figures, boards) for source in figures.of(name)]


def absent(name: str, figures: Published) -> list[Absent]:
    """The methods whose paper's numbers are not in the published tables of a leaderboard."""
    return [gap for gap in figures.absent if name in gap.leaderboards]


def _paper(source: PublishedTable, figures: Published, boards: Tables) -> Papers:
    columns: dict[str, dict[str, Column]] = {}  # our protocol -> size -> column
    for name in dict.fromkeys(source.here.values()):
        board = boards.get(name)
        if board is not None and board.rows:
            columns[name] = {c.test: c for c in board.pairs if c.train == source.train and c.test in source.sizes}
    beside = [size for size in source.sizes if any(size in item for item in columns.values())]

    def ours(method: str, name: str | None, size: str) -> list[Cell]:
        row = next((row for row in boards[name].rows if row.method == method), None) if name in columns else None
        if row is None or size not in columns[name]:
            return [Cell(NOT_RUN)] * 2
        entries = [row.entries[metric, columns[name][size]] for metric in ("fid", "is")]
        return [Cell(shown(entry, 2).text, sort=entry.value) for entry in entries]

    # The file's numbers have lost their last zeros; a paper prints a measure with the same decimals throughout.
    given = {metric: [cell[place] for row in source.rows for cell in row.cells.values() if cell and cell[place] is not None]
             for place, metric in enumerate(METRICS)}  # fmt: skip
    printed = {metric: max(len(repr(value).partition(".")[2]) for value in values) for metric, values in given.items() if values}
    main = tuple(metric for metric in ("fid", "is") if metric in printed or beside)
    others = tuple(metric for metric in ("sfid", "precision", "recall") if metric in printed)

    def theirs(cell: list[float] | None, metrics: tuple[str, ...]) -> list[Cell]:
        values = [None if cell is None else cell[METRICS.index(metric)] for metric in metrics]
        known = zip(values, metrics, strict=True)
        return [Cell(NOT_RUN) if value is None else Cell(number(value, printed[metric]), sort=value) for value, metric in known]

    def heads(metrics: tuple[str, ...], with_ours: bool) -> list[Head]:
        found = [Head("Method in the paper", words=True, key="name"), Head("Training", words=True, key="training")]
        for size in source.sizes:
            for here in ("", " here") if with_ours and size in beside else ("",):
                titles = [f"{RECORDED[metric].title} {RECORDED[metric].arrow}{here}" for metric in metrics]
                found += [Head(title, size, key=f"{title}{size}", falls="↑" in title) for title in titles]
        return found

    first: list[Line] = []
    rest: list[Line] = []
    for row in source.rows:
        names = [Cell(row.name, sort=row.name), Cell(row.training, sort=row.training)]
        cells, further = [*names], [*names]
        for size in source.sizes:
            cell = row.cells.get(size)
            cells += theirs(cell, main)
            cells += ours(row.ours, source.here.get(row.training), size) if size in beside else []
            further += theirs(cell, others)
        first.append(Line(cells))
        rest.append(Line(further))
    for gap in absent(source.leaderboard, figures):
        for name in columns:  # only where there are records of ours, which stand alone
            trainings = [training for training, here in source.here.items() if here == name]
            label = f"not listed ({trainings[0]} here)"
            cells = [Cell(gap.name, sort=gap.name), Cell(label, sort=label)]
            for size in source.sizes:
                cells += [Cell(NOT_RUN)] * len(main) + (ours(gap.ours, name, size) if size in beside else [])
            first.append(Line(cells))
    title = f"{source.paper}, table {source.table}: trained at {source.train}"
    here = {name: " and ".join(t for t, ours in source.here.items() if ours == name) for name, found in columns.items() if found}
    grids = [Grid(title, heads(main, True), first)]
    if others:
        grids.append(Grid(", ".join(RECORDED[metric].title for metric in others), heads(others, False), rest))
    return Papers(title, source, here, grids)
