"""Pairs of methods on whose order published tables agree, and how many have that order here.

A paper's from-scratch and fine-tuned tables do not order all methods alike, so no order of ours can agree with both. What is
asked of a small protocol are the pairs on which every table that prints both has the same order: the stable pairs.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmark import protocol, registry
from benchmark.board import published
from benchmark.board.grid import NOT_RUN, Cell, Grid, Head, Line, number
from benchmark.board.published import Agreement, Published, Source, StablePairs
from benchmark.board.table import Column, Table, over
from benchmark.results.record import METRICS

BY = ("fid", "sfid", "loss")  # the measures that are asked for the tables' order by FID
Pair = tuple[str, str]  # the better one first


@dataclass(frozen=True)
class Share:
    """The share of the stable pairs that a measure orders as the tables do, over those whose methods both have records.

    `interval` holds the middle 95 % over seeds, or over the images of the only one; None where nothing tells it.
    """

    value: float
    interval: tuple[float, float] | None
    count: int
    other: list[tuple[Pair, float, float]]  # the pairs in the other order, and our values


def orders(source: Source, figures: Published, size: str) -> dict[str, float]:
    """{method of ours: FID} of a published table at one of its sizes."""
    table = next(item for item in figures.tables if item.id == source.table)
    rows = {row.name: row.cells.get(size) for row in table.rows}
    return {ours: rows[name][0] for ours, name in source.methods.items() if rows[name] and rows[name][0] is not None}


def sorted_pairs(values: dict[str, float]) -> list[Pair]:
    """Every pair of methods with different values, the one with the lower value first."""
    found = [(a, b) if values[a] < values[b] else (b, a) for a, b in combinations(values, 2) if values[a] != values[b]]
    return sorted(found)


def stable(item: StablePairs, figures: Published, size: str) -> tuple[list[Pair], int]:
    """The pairs that at least two of the tables print at a size, all in the same order; and how many at least two print."""
    votes = [set(sorted_pairs(orders(source, figures, size))) for source in item.sources]
    named = {pair for pairs in votes for pair in pairs}
    several = {pair for pair in named if sum(pair in pairs or pair[::-1] in pairs for pairs in votes) > 1}
    agreed = sorted(pair for pair in several if pair[::-1] not in named)
    return agreed, len({frozenset(pair) for pair in several})


def share(board: Table, column: Column, pairs: list[Pair], metric: str) -> Share | None:
    """How a measure orders the pairs at one of our columns; None where it has no pair to order."""
    sign = METRICS[metric].sign
    entries = {row.method: row.entries[metric, column] for row in board.rows if (metric, column) in row.entries}
    have = {method: entry for method, entry in entries.items() if entry.value is not None}
    pairs = [pair for pair in pairs if set(pair) <= set(have)]
    if not pairs:
        return None
    methods = sorted({method for pair in pairs for method in pair})
    seeds = sorted(set.intersection(*(set(have[method].by_seed) for method in methods)))
    values = np.array([over(have[method], seeds).value for method in methods])
    places = np.array([[methods.index(method) for method in pair] for pair in pairs]).T

    def statistic(ours: np.ndarray) -> np.ndarray:
        return (sign * ours[..., places[0]] < sign * ours[..., places[1]]).mean(-1)

    other = [
        (pair, float(values[a]), float(values[b]))
        for pair, a, b in zip(pairs, *places, strict=True)
        if sign * values[a] >= sign * values[b]
    ]
    ends = published.interval(statistic, [published.centred(have[method]) for method in methods], metric == "loss")
    return Share(float(statistic(values)), ends, len(pairs), other)


def asked_of(board: Table, figures: Published) -> StablePairs | None:
    """What is asked of a protocol; None for nothing."""
    return next((item for item in figures.stable if fnmatch.fnmatchcase(board.protocol.name, item.protocols)), None)


def other_tables(board: Table, figures: Published, found: Agreement) -> str:
    """Kendall's tau of our order with each further table of that size, such as "LEDiT, XL/2 fine-tuned 0.40"; or "–"."""
    item, ours, words = asked_of(board, figures), dict(zip(found.methods, found.ours, strict=True)), []
    for source in [*item.sources[1:], *([item.beside] if item.beside else [])] if item else []:
        theirs = orders(source, figures, found.size)
        both = sorted(set(theirs) & set(ours))
        if len({ours[m] for m in both}) > 2:
            tau = published.kendall([theirs[m] for m in both], np.array([ours[m] for m in both]))
            words.append(f"{source.title} {number(float(tau), 2)}")
    return "; ".join(words) or NOT_RUN


def agreement(board: Table, figures: Published) -> Grid | None:
    """The shares by FID, sFID and denoising loss at each square size beyond the training size; None where nothing is asked."""
    item = asked_of(board, figures)
    if item is None or board.protocol.switches != protocol.Switches():
        return None
    by = [metric for metric in BY if metric in board.metrics]
    sizes = {size: Column("beyond", table.train, size) for table in figures.tables if table.id == item.sources[0].table
             for size in table.sizes}  # fmt: skip
    titles = {row.method: row.title for row in board.rows}
    rows = []
    for size, theirs in sizes.items():
        for column in board.pairs:
            if not column.is_square or column.ratio_label != theirs.ratio_label:
                continue
            agreed, several = stable(item, figures, size)
            wanted = [*agreed, *((square.before, square.after) for square in item.squares)]
            shares = {metric: share(board, column, wanted, metric) for metric in by}
            if not any(shares.values()):
                continue
            first, second = (orders(source, figures, size) for source in item.sources[:2])
            both = sorted(set(first) & set(second))
            tau = published.kendall([first[m] for m in both], np.array([second[m] for m in both])) if len(both) > 2 else None
            cells = [
                Cell(column.ratio_label, f"{column.train} → {column.test} here, {size} there"),
                Cell(f"{len(agreed)} of {several}", "" if tau is None else f"tau {float(tau):.2f}"),
                _beside(item, figures, size, agreed),
                *(_cell(found) for found in shares.values()),
                Cell(_differing(shares.get("fid"), titles)),
            ]
            rows.append(Line(cells))
    if not rows:
        return None
    heads = [Head("Ratio", words=True), Head("Between tables"), Head(item.beside.title if item.beside else "–")]
    heads += [Head(f"{METRICS[metric].title} here") for metric in by]
    heads.append(Head("Reversed here, by FID", words=True))
    names = "; ".join(source.title for source in item.sources)
    asked = "".join(f"{registry.about(x.before).title} before {registry.about(x.after).title} is tested too ({x.source}). "
                    for x in item.squares)  # fmt: skip
    text = (
        f"The published tables disagree on parts of the ranking ({names}). Stable pairs are those that at least two tables "
        "report at a size, all in the same order by FID; below their number is Kendall's tau between the first two tables, which "
        f"no single ranking can match in full. {asked}The columns give the share of pairs in that order here, using means "
        "over the seeds that all these methods have, with 95 % intervals over these seeds (over images, if there is one)."
    )
    return Grid("Pairs on which published tables agree", heads, rows, text)


def _beside(item: StablePairs, figures: Published, size: str, agreed: list[Pair]) -> Cell:
    """How many of the stable pairs a table that has no vote orders alike."""
    values = orders(item.beside, figures, size) if item.beside else {}
    pairs = [pair for pair in agreed if set(pair) <= set(values)]
    if not pairs:
        return Cell(NOT_RUN)
    return Cell(f"{sum(values[a] < values[b] for a, b in pairs)} of {len(pairs)}")


def _cell(found: Share | None) -> Cell:
    if found is None:
        return Cell(NOT_RUN)
    right = found.count - len(found.other)
    ends = f", {found.interval[0]:.2f} to {found.interval[1]:.2f}" if found.interval else ""
    return Cell(number(found.value, 2), f"{right} of {found.count}{ends}")


def _differing(found: Share | None, titles: dict[str, str]) -> str:
    if found is None:
        return NOT_RUN
    return "; ".join(f"{titles[b]} {y:.3g} < {titles[a]} {x:.3g}" for (a, b), x, y in found.other) or "none"
