"""The papers' own figures, and how far the order of a small contest of ours agrees with theirs.

Figures live in leaderboards/published.yaml with their paper and table; nothing in it was measured here.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import files, protocol
from benchmark.board import table
from benchmark.board.table import Column, Side, Table
from benchmark.files import UserError
from benchmark.results.record import METRICS as RECORDED

FILE = files.ROOT / "leaderboards" / "published.yaml"
METRICS = ("fid", "sfid", "is", "precision", "recall")  # the order of a cell's numbers
TRAININGS = ("scratch", "scratch, refined", "fine-tuned", "released")
RESAMPLES = 2000


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table; `cells` maps a test size to its five numbers, or to None."""

    name: str
    training: str
    ours: str  # the method of ours that it is, or ""
    cells: dict[str, list[float | None] | None]


@dataclass(frozen=True)
class PublishedTable:
    id: str
    leaderboard: str
    paper: str
    url: str
    table: str
    train: str
    samples: int
    protocol: str
    contests: dict[str, str]  # training -> our contest of these rules, whose numbers may stand beside the paper's
    rows: list[PublishedRow]

    @property
    def sizes(self) -> list[str]:
        """Test sizes in the order of the paper."""
        return list(dict.fromkeys(size for row in self.rows for size in row.cells))


@dataclass(frozen=True)
class Absent:
    """A method whose paper's numbers are not here, and why."""

    ours: str
    name: str
    paper: str
    url: str
    leaderboards: list[str]
    why: str


@dataclass(frozen=True)
class Prediction:
    """Which contests (a pattern) are compared with which table's order; `methods` maps our names to its rows."""

    contests: str
    table: str
    methods: dict[str, str]


@dataclass(frozen=True)
class Published:
    leaderboards: dict[str, str]  # name -> title
    tables: list[PublishedTable]
    absent: list[Absent]
    predictions: list[Prediction]

    def of(self, leaderboard: str) -> list[PublishedTable]:
        """The tables of one leaderboard."""
        return [item for item in self.tables if item.leaderboard == leaderboard]


@dataclass(frozen=True)
class Line:
    """A row to show: a paper's, or one for a method whose paper's numbers are not here (without cells)."""

    name: str
    training: str
    cells: dict[str, list[float | None] | None]
    ours: dict[str, tuple[str, str]]  # size -> our FID and IS as text; empty before there are records


@functools.cache
def load(path: Path | str = FILE) -> Published:
    """Reads the file; a UserError says what is wrong with it."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        tables = [
            PublishedTable(**{**item, "rows": [PublishedRow(**{"ours": "", **row}) for row in item["rows"]]})
            for item in content["tables"]
        ]
        found = Published(
            content["leaderboards"],
            tables,
            [Absent(**item) for item in content["absent"]],
            [Prediction(**item) for item in content["predictions"]],
        )
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a file of published tables ({' '.join(str(error).split())})") from None
    for item in found.tables:
        if item.leaderboard not in found.leaderboards:
            raise files.unknown(f"leaderboard in {path}", item.leaderboard, found.leaderboards)
        for row in item.rows:
            where = f"{path}: {item.id}: {row.name}"
            if row.training not in TRAININGS:
                raise files.unknown(f"training in {where}", row.training, TRAININGS)
            for size, cell in row.cells.items():
                protocol.size_hw(size)
                if cell is not None and (len(cell) != len(METRICS) or not all(v is None or _is_number(v) for v in cell)):
                    raise UserError(f"{where} at {size} must hold {len(METRICS)} numbers or null")
    rows = {item.id: [row.name for row in item.rows] for item in found.tables}
    for prediction in found.predictions:
        if prediction.table not in rows:
            raise files.unknown(f"table in {path}", prediction.table, rows)
        for name in prediction.methods.values():
            if name not in rows[prediction.table]:
                raise files.unknown(f"row in {path}", name, rows[prediction.table])
    return found


def lines(source: PublishedTable, figures: Published, boards: Mapping[str, Table | None]) -> tuple[list[Line], list[str]]:
    """The rows to show of a published table, with ours beside them, and the sizes that have columns of ours.

    Args:
        boards: our tables by contest; only those that have records count.
    """
    places: dict[str, dict[str, Column]] = {}  # contest -> size -> column
    for contest in dict.fromkeys(source.contests.values()):
        board = boards.get(contest)
        if board is not None and board.rows:
            places[contest] = {c.test: c for c in board.pairs if c.train == source.train and c.test in source.sizes}

    def ours(method: str, contest: str | None) -> dict[str, tuple[str, str]]:
        rows = {row.method: row for row in boards[contest].rows} if contest in places else {}
        if method not in rows:
            return {}
        entries = rows[method].entries
        return {
            size: tuple(table.show(entries[metric, c], 2)[0] for metric in ("fid", "is")) for size, c in places[contest].items()
        }

    found = [Line(row.name, row.training, row.cells, ours(row.ours, source.contests.get(row.training))) for row in source.rows]
    for gap in figures.absent:
        if source.leaderboard in gap.leaderboards:
            for contest in places or [None]:
                trainings = [training for training, name in source.contests.items() if name == contest]
                label = f"no published number ({trainings[0]} here)" if trainings else "no published number"
                found.append(Line(gap.name, label, {}, ours(gap.ours, contest)))
    return found, [size for size in source.sizes if any(size in columns for columns in places.values())]


def shown(cell: list[float | None] | None, metric: str) -> str:
    """One of a cell's numbers as text; a dash where the paper prints none."""
    value = None if cell is None else cell[METRICS.index(metric)]
    return "–" if value is None else f"{value:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau between a paper's order and ours by one measure at one size ratio, with its bootstrap interval.

    `interval` is None where it cannot be computed: fewer than three methods, or fewer than three seeds of a measure without
    replicates.
    """

    ratio: str  # "2x"
    size: str  # the paper's test size
    column: Column  # ours
    paper: str
    methods: list[str]  # in the paper's order
    theirs: list[float]
    ours: list[float]
    missing: list[str]  # methods of the paper's order that ours lacks
    tau: float | None
    interval: tuple[float, float] | None
    seeds: list[int]  # those that all compared methods have: `ours` are their means (of all seeds, where there are none)


def kendall(theirs: Sequence[float], ours: np.ndarray) -> np.ndarray:
    """Kendall's tau-b (Kendall 1945): pairs in the same order minus those in the other, over the geometric mean of untied pairs.

    Args:
        theirs: [M] values.
        ours: [..., M] values.

    Returns:
        [...], 0 where either side has no order at all.
    """
    pairs = np.array(list(combinations(range(len(theirs)), 2))).T
    theirs = np.sign(np.subtract(*np.asarray(theirs, np.float64)[pairs]))
    ours = np.sign(ours[..., pairs[0]] - ours[..., pairs[1]])
    untied = np.sqrt((theirs**2).sum() * (ours**2).sum(-1))
    return (theirs * ours).sum(-1) / np.maximum(untied, 1)


def chance(count: int, tau: float) -> float:
    """The share of all orders of `count` things whose tau with a given one is `tau` or more, from the counts of inversions."""
    orders = np.ones(1)  # how many orders have 0, 1, ... inversions
    for length in range(2, count + 1):
        orders = np.convolve(orders, np.ones(length))
    most = (1 - tau) / 2 * (len(orders) - 1)
    return float(orders[np.arange(len(orders)) <= most + 1e-9].sum() / orders.sum())


def agreements(board: Table, published: Published, metric: str = "fid") -> list[Agreement]:
    """How our order by a measure agrees with the published one by the same measure, at each size ratio.

    For the contests that claim to predict it.
    """
    if board.rules.switches != protocol.Switches():
        return []  # the order is claimed of the contests without switches, although LEDiT's rows of the paper had theirs on
    found = []
    for prediction in published.predictions:
        if not fnmatch.fnmatchcase(board.rules.name, prediction.contests):
            continue
        source = next(item for item in published.tables if item.id == prediction.table)
        rows = {row.name: row for row in source.rows}
        for size in source.sizes:
            cells = {ours: rows[name].cells.get(size) for ours, name in prediction.methods.items()}
            place = METRICS.index(metric)
            theirs = {ours: cell[place] for ours, cell in cells.items() if cell and cell[place] is not None}
            wanted = Column("beyond", source.train, size)
            for column in board.pairs:
                if column.is_square and column.ratio_label == wanted.ratio_label:
                    found.append(_agreement(board, column, source, size, theirs, metric))
    return found


def by_measure(board: Table, published: Published) -> Side | None:
    """Kendall's tau for every measure that the paper prints, as a table; None where there is no order to compare."""
    found = {metric: agreements(board, published, metric) for metric in METRICS if metric in board.metrics}
    found = {metric: items for metric, items in found.items() if any(item.tau is not None for item in items)}
    if not found:
        return None
    ratios = list(dict.fromkeys(item.ratio for items in found.values() for item in items))
    count = max(len(item.methods) for items in found.values() for item in items)
    rows = []
    for metric, items in found.items():
        cells = {item.ratio: item for item in items if item.tau is not None}
        row = [(f"{RECORDED[metric].title} {RECORDED[metric].arrow}", "", False)]
        for ratio in ratios:
            item = cells.get(ratio)
            ends = f"{item.interval[0]:.2f} to {item.interval[1]:.2f}" if item and item.interval else ""
            row.append((f"{item.tau:.2f}", ends, False) if item else ("–", "", False))
        rows.append(row)
    text = (
        "Kendall's tau between the paper's order by a measure and the order here by the same measure: all that the paper prints. "
        "Their detector is Inception. Intervals are over images and seeds, or over seeds alone where a measure has no resamples; "
        f"none knows which methods were compared. By chance, an order of {count} has a tau of 0.6 or more in "
        f"{chance(count, 0.6):.0%} of all cases, of 0.8 or more in {chance(count, 0.8):.0%}."
    )
    return Side("Which measures predict?", text, ["By", *ratios], 1, rows)


def _agreement(
    board: Table, column: Column, source: PublishedTable, size: str, theirs: dict[str, float], metric: str
) -> Agreement:
    entries = {row.method: row.entries[metric, column] for row in board.rows if (metric, column) in row.entries}
    have = {method: entry for method, entry in entries.items() if entry.value is not None}
    methods = sorted((method for method in theirs if method in have), key=lambda method: theirs[method])
    order = [theirs[method] for method in methods]
    # A method's extra seed would compare the draw of a seed rather than methods.
    seeds = sorted(set.intersection(*(set(have[method].by_seed) for method in methods))) if methods else []
    own = [[have[method].by_seed[seed] for seed in seeds] or [have[method].value] for method in methods]
    values = np.array([math.fsum(items) / len(items) for items in own])
    tau, ends = None, None
    if len(methods) > 2:
        tau = float(kendall(order, values))
        ends = _interval(order, [_centred(have[method]) for method in methods])
    return Agreement(
        column.ratio_label, size, column, f"{source.paper}, table {source.table}", methods, order, values.tolist(),
        sorted(set(theirs) - set(methods)), tau, ends, seeds,
    )  # fmt: skip


def _centred(entry: table.Entry) -> dict[int, np.ndarray]:
    """Replicates whose mean is the value of their seed: resampling moves some statistics, and only the spread is wanted.

    A measure without replicates has its values alone.
    """
    if not entry.replicates:
        return {seed: np.array([value]) for seed, value in entry.by_seed.items()}
    return {seed: values - values.mean() + entry.by_seed[seed] for seed, values in entry.replicates.items()}


def _interval(order: list[float], replicates: list[dict[int, np.ndarray]]) -> tuple[float, float] | None:
    """The middle 95 % of tau over draws of images and of seeds (with replacement, of the seeds that all methods have)."""
    seeds = sorted(set.intersection(*(set(item) for item in replicates)))
    if not seeds:
        return None
    if len({values.size for item in replicates for values in item.values()}) > 1:  # not of the same resamples
        replicates = [{seed: values.mean(keepdims=True) for seed, values in item.items()} for item in replicates]
    stack = np.array([[item[seed] for seed in seeds] for item in replicates])  # [methods, seeds, images' resamples]
    if stack.shape[2] == 1 and len(seeds) < 3:
        return None
    generator = np.random.RandomState(0)  # its stream is frozen, Generator's is not
    images = generator.randint(0, stack.shape[2], RESAMPLES)
    picks = generator.randint(0, len(seeds), (RESAMPLES, len(seeds)))
    ours = stack[:, picks, images[:, None]].mean(axis=2).T  # [RESAMPLES, methods]
    low, high = np.quantile(kendall(order, ours), [0.025, 0.975])
    return float(low), float(high)
