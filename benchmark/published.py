"""The papers' own figures, and how far the order of a small contest of ours agrees with theirs.

Figures live in leaderboards/published.yaml with their paper and table; nothing in it was measured here.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import files, protocol, table
from benchmark.files import UserError
from benchmark.table import Column, Table

FILE = files.ROOT / "leaderboards" / "published.yaml"
METRICS = ("fid", "sfid", "is", "precision", "recall")  # the order of a cell's numbers
TRAININGS = ("scratch", "scratch, refined", "fine-tuned", "released")
RESAMPLES = 2000


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table; `cells` maps a test size to its five numbers, or to None."""

    name: str
    training: str
    ours: str  # our method's name, or ""
    cells: dict[str, list[float] | None]


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
    """Which contests (a pattern) are compared with which table's rows of which training."""

    contests: str
    table: str
    training: str


@dataclass(frozen=True)
class Published:
    tables: list[PublishedTable]
    absent: list[Absent]
    predictions: list[Prediction]

    def leaderboards(self) -> list[str]:
        return sorted({item.leaderboard for item in self.tables})


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
            tables,
            [Absent(**item) for item in content["absent"]],
            [Prediction(**item) for item in content["predictions"]],
        )
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a file of published tables ({' '.join(str(error).split())})") from None
    for item in found.tables:
        for row in item.rows:
            where = f"{path}: {item.id}: {row.name}"
            if row.training not in TRAININGS:
                raise files.unknown(f"training in {where}", row.training, TRAININGS)
            for size, cell in row.cells.items():
                protocol.size_hw(size)
                if cell is not None and (len(cell) != len(METRICS) or not all(map(_is_number, cell))):
                    raise UserError(f"{where} at {size} must hold {len(METRICS)} numbers or null")
    for prediction in found.predictions:
        if prediction.table not in {item.id for item in found.tables}:
            raise files.unknown(f"table in {path}", prediction.table, [item.id for item in found.tables])
    return found


def beside(board: Table | None, source: PublishedTable) -> dict[str, Column]:
    """Our columns that belong beside a published table, by test size: those with its training size, once records exist."""
    if board is None or not board.rows:
        return {}
    return {column.test: column for column in board.pairs if column.train == source.train}


def ours(board: Table, method: str, column: Column) -> list[str]:
    """[FID, IS] of our method beside a published row, as text."""
    row = next((row for row in board.rows if row.method == method), None)
    if row is None:
        return ["–", "–"]
    return [table.show(row.entries[metric, column], 2)[0] for metric in ("fid", "is")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau between a paper's order and ours at one size ratio, with its bootstrap interval.

    `interval` is None where it cannot be computed: fewer than three methods, or records without replicates.
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


def kendall(theirs: Sequence[float], ours: np.ndarray) -> np.ndarray:
    """Kendall's tau-a: pairs in the same order minus pairs in the other, over all pairs (Kendall 1938); ties count zero.

    Args:
        theirs: [M] values.
        ours: [..., M] values.

    Returns:
        [...]
    """
    pairs = list(combinations(range(len(theirs)), 2))
    score = sum(np.sign(theirs[a] - theirs[b]) * np.sign(ours[..., a] - ours[..., b]) for a, b in pairs)
    return score / len(pairs)


def agreements(board: Table, published: Published) -> list[Agreement]:
    """How our order at each size ratio agrees with the published one, for the contests that claim to predict it."""
    found = []
    for prediction in published.predictions:
        if not fnmatch.fnmatchcase(board.rules.name, prediction.contests):
            continue
        source = next(item for item in published.tables if item.id == prediction.table)
        rows = [row for row in source.rows if row.training == prediction.training and row.ours]
        for size in source.sizes:
            theirs = {row.ours: row.cells[size][0] for row in rows if row.cells.get(size)}
            wanted = Column("beyond", source.train, size)
            for column in board.pairs:
                if column.is_square and column.ratio_label == wanted.ratio_label:
                    found.append(_agreement(board, column, source, size, theirs))
    return found


def _agreement(board: Table, column: Column, source: PublishedTable, size: str, theirs: dict[str, float]) -> Agreement:
    entries = {row.method: row.entries["fid", column] for row in board.rows if ("fid", column) in row.entries}
    have = {method: entry for method, entry in entries.items() if entry.value is not None}
    methods = sorted((method for method in theirs if method in have), key=lambda method: theirs[method])
    order = [theirs[method] for method in methods]
    values = np.array([have[method].value for method in methods])
    tau, ends = None, None
    if len(methods) > 2:
        tau = float(kendall(order, values))
        ends = _interval(order, [have[method].replicates for method in methods])
    return Agreement(
        column.ratio_label, size, column, f"{source.paper}, table {source.table}", methods, order, values.tolist(),
        sorted(set(theirs) - set(methods)), tau, ends,
    )  # fmt: skip


def _interval(order: list[float], replicates: list[dict[int, np.ndarray]]) -> tuple[float, float] | None:
    """The middle 95 % of tau over draws of images and of seeds (with replacement, of the seeds that all methods have)."""
    seeds = sorted(set.intersection(*(set(item) for item in replicates)))
    if not seeds:
        return None
    stack = np.array([[item[seed] for seed in seeds] for item in replicates])  # [methods, seeds, images' resamples]
    generator = np.random.RandomState(0)  # its stream is frozen, Generator's is not
    images = generator.randint(0, stack.shape[2], RESAMPLES)
    picks = generator.randint(0, len(seeds), (RESAMPLES, len(seeds)))
    ours = stack[:, picks, images[:, None]].mean(axis=2).T  # [RESAMPLES, methods]
    low, high = np.quantile(kendall(order, ours), [0.025, 0.975])
    return float(low), float(high)
