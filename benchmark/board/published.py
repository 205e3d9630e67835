"""The papers' own figures, and the agreement of a small protocol's ranking with theirs.

Figures live in leaderboards/published.yaml with their paper and table; nothing in it was measured here.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import files, protocol
from benchmark.board.table import Column, Entry, Table
from benchmark.files import UserError
from benchmark.inputs import read_yaml
from benchmark.streams import agreement

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
    here: dict[str, str]  # training -> our protocol of the same rules, whose numbers may stand beside the paper's
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
    """Which protocols (a pattern) are compared with which table's order; `methods` maps our names to its rows."""

    protocols: str
    table: str
    methods: dict[str, str]


@dataclass(frozen=True)
class Source:
    """Rows of a published table as an order of methods of ours; `title` says which rows they are."""

    table: str
    title: str
    methods: dict[str, str]


@dataclass(frozen=True)
class Square:
    """An order of two methods that a paper has at another square size, taken to hold at every one; `source` says where."""

    before: str
    after: str
    source: str


@dataclass(frozen=True)
class StablePairs:
    """Which protocols (a pattern) are asked for the pairs that `sources` have in one order; `beside` is shown and has no vote."""

    protocols: str
    sources: list[Source]
    beside: Source | None
    squares: list[Square]


@dataclass(frozen=True)
class Published:
    leaderboards: dict[str, str]  # name -> title
    tables: list[PublishedTable]
    absent: list[Absent]
    predictions: list[Prediction]
    stable: list[StablePairs]

    def of(self, leaderboard: str) -> list[PublishedTable]:
        """The tables of one leaderboard."""
        return [item for item in self.tables if item.leaderboard == leaderboard]


@functools.cache
def load(path: Path | str = FILE) -> Published:
    """Reads the file; a UserError says what is wrong with it."""
    content = read_yaml(path)
    try:
        tables = [
            PublishedTable(**{**item, "rows": [PublishedRow(**{"ours": "", **row}) for row in item["rows"]]})
            for item in content["tables"]
        ]
        found = Published(
            content["leaderboards"],
            tables,
            [Absent(**item) for item in content["absent"]],
            [Prediction(**item) for item in content["predictions"]],
            [
                StablePairs(
                    item["protocols"],
                    [Source(**source) for source in item["sources"]],
                    Source(**item["beside"]) if item["beside"] else None,
                    [Square(**square) for square in item["squares"]],
                )
                for item in content["stable"]
            ],
        )
    except (TypeError, KeyError) as error:
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
                if cell is not None and (
                    len(cell) != len(METRICS) or not all(value is None or _is_number(value) for value in cell)
                ):
                    raise UserError(f"{where} at {size} must hold {len(METRICS)} numbers or null")
    rows = {item.id: [row.name for row in item.rows] for item in found.tables}
    orders: list[Prediction | Source] = [*found.predictions]
    for item in found.stable:
        orders += [*item.sources, *([item.beside] if item.beside else [])]
    for order in orders:
        if order.table not in rows:
            raise files.unknown(f"table in {path}", order.table, rows)
        for name in order.methods.values():
            if name not in rows[order.table]:
                raise files.unknown(f"row in {path}", name, rows[order.table])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau between a paper's order and ours by one measure at one size ratio, with its bootstrap interval.

    `tau` is None where fewer than three methods differ; `interval`, too, where a measure without replicates has fewer than three
    seeds.
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

    For the protocols that claim to predict it.
    """
    if board.protocol.switches != protocol.Switches():
        return []  # the order is claimed of protocols without switches, although LEDiT's rows of the paper had theirs on
    found = []
    for prediction in published.predictions:
        if not fnmatch.fnmatchcase(board.protocol.name, prediction.protocols):
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


def _agreement(
    board: Table, column: Column, source: PublishedTable, size: str, theirs: dict[str, float], metric: str
) -> Agreement:
    entries = {row.method: row.entries[metric, column] for row in board.rows if (metric, column) in row.entries}
    have = {method: entry for method, entry in entries.items() if entry.value is not None}
    methods = sorted((method for method in theirs if method in have), key=lambda method: theirs[method])
    order = [theirs[method] for method in methods]
    # A method's extra seed would compare seeds rather than methods.
    seeds = sorted(set.intersection(*(set(have[method].by_seed) for method in methods))) if methods else []
    own = [[have[method].by_seed[seed] for seed in seeds] or [have[method].value] for method in methods]
    values = np.array([math.fsum(items) / len(items) for items in own])
    tau, ends = None, None
    if len(set(values)) > 2:  # equal values have no order, and of two values, such as a bound and one other, hardly any
        tau = float(kendall(order, values))
        ends = interval(lambda ours: kendall(order, ours), [centred(have[method]) for method in methods])
    return Agreement(
        column.ratio_label, size, column, f"{source.paper}, table {source.table}", methods, order, values.tolist(),
        sorted(set(theirs) - set(methods)), tau, ends, seeds,
    )  # fmt: skip


def centred(entry: Entry) -> dict[int, np.ndarray]:
    """Replicates whose mean is the value of their seed: resampling moves some statistics, and only the spread is wanted.

    A measure without replicates has its values alone.
    """
    if not entry.replicates:
        return {seed: np.array([value]) for seed, value in entry.by_seed.items()}
    return {seed: values - values.mean() + entry.by_seed[seed] for seed, values in entry.replicates.items()}


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], replicates: list[dict[int, np.ndarray]], same_images: bool = False
) -> tuple[float, float] | None:
    """The middle 95 % of a statistic over the seeds that all methods have, or over the images of the only one.

    Means over seeds vary by a multivariate Student's t with the covariance of the seeds: resampling two or three seeds would
    cover about 50 % or 75 %, not 95 %. Where every seed has images of its own, the spread of seeds holds that of images already.
    A rank correlation of perturbed values is closer to zero than that of the values, so the interval of a perfect order extends
    downwards only.

    Args:
        statistic: values of the methods [..., M] -> [...].
        replicates: of each method, its resamples by seed.
        same_images: all seeds are measured on the same images, as the denoising loss is, so that these are resampled as well.

    Returns:
        None where nothing is known of either: one seed without resamples.
    """
    seeds = sorted(set.intersection(*(set(item) for item in replicates)))
    if not seeds:
        return None
    if len({values.size for item in replicates for values in item.values()}) > 1:  # not of the same resamples
        replicates = [{seed: values.mean(keepdims=True) for seed, values in item.items()} for item in replicates]
    stack = np.array([[item[seed] for seed in seeds] for item in replicates])  # [methods, seeds, images' resamples]
    if stack.shape[1:] == (1, 1):
        return None
    generator, count = agreement(), len(seeds)
    images = generator.randint(0, stack.shape[2], RESAMPLES)
    if count > 1:
        values = stack.mean(axis=2)  # [methods, seeds]
        middle = values.mean(axis=1)
        steps = generator.standard_normal((RESAMPLES, count)) / np.sqrt(generator.chisquare(count - 1, (RESAMPLES, 1)))
        ours = middle + steps @ (values - middle[:, None]).T / np.sqrt(count)  # [RESAMPLES, methods]
        if same_images:
            ours = ours + (stack.mean(axis=1) - middle[:, None])[:, images].T
    else:
        ours = stack[:, 0, images].T
    low, high = np.quantile(statistic(ours), [0.025, 0.975])
    return float(low), float(high)
