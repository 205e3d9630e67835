"""A table as plain text, independent of the output format (markdown or HTML)."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from benchmark.board.table import Entry, Table

NOT_RUN, FAILED = "–", "failed"


@dataclass(frozen=True)
class Cell:
    """What stands at one place."""

    text: str
    detail: str = ""  # in small letters: a spread, an interval, a change
    best: bool = False
    sort: float | str | None = None  # what the page sorts by; places without it come last
    link: str = ""
    marks: str = ""


@dataclass(frozen=True)
class Head:
    """A column's heading, in one line or two."""

    title: str
    below: str = ""
    words: bool = False  # words stand to the left, numbers to the right
    key: str = ""  # the column's name in the page's address; "" where the page cannot sort by it
    group: str = ""  # "below", "at", "beyond" or "mean"
    falls: bool = False  # sorted from the largest down at first


@dataclass(frozen=True)
class Line:
    """A row, of a method where it has one."""

    cells: list[Cell]
    method: str = ""


@dataclass(frozen=True)
class Grid:
    """A table with its title and what has to be said of it."""

    title: str
    heads: list[Head]
    rows: list[Line]
    text: str = ""


def escape(text: str) -> str:
    """Text from a record or card as markdown that shows it literally, inside a table cell too."""
    return re.sub(r"([\\`*_\[\]{}|~#$@]|:(?=\S))", r"\\\1", html.escape(text, quote=False))


def number(value: float, places: int, sign: bool = False) -> str:
    """A value with so many decimals, and never a zero with a minus."""
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text if text.strip("+-0.") else text.strip("+-")


def decimals(values: Iterable[float | None]) -> int:
    """Decimals for a column or a whole table: enough for three figures of its median."""
    sizes = sorted(abs(value) for value in values if value is not None)
    middle = sizes[len(sizes) // 2] if sizes else 0.0
    return 1 if middle >= 10 else 2 if middle >= 1 else 3


def places_of(board: Table, metric: str) -> int:
    """The decimals of a measure's table."""
    return decimals(row.entries[metric, column].value for row in board.rows for column in board.columns)


def shown(entry: Entry, places: int) -> Cell:
    """An entry as (value, what is known of its spread): 12.3 ± 0.4; 12.3, 11.9 to 12.8; failed; –."""
    if entry.value is None:
        return Cell(FAILED if entry.failed else NOT_RUN)
    detail = ""
    if entry.spread is not None:
        digits = places if not entry.spread else min(max(places, -math.floor(math.log10(entry.spread))), places + 2)
        detail = f"± {number(entry.spread, digits)}"  # with a digit that is not 0
    elif entry.interval is not None:
        detail = f"{number(entry.interval[0], places)} to {number(entry.interval[1], places)}"
    if entry.failed:
        detail += f" ({entry.failed} failed)"
    return Cell(number(entry.value, places), detail.strip(), entry.best, float(f"{entry.value:.6g}"))
