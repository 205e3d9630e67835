"""The contents of a leaderboard, from which the markdown, the page and the project's README are rendered."""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from benchmark import files, registry
from benchmark.board import beside, real
from benchmark.board.beside import Papers, Tables
from benchmark.board.facts import facts
from benchmark.board.grid import Cell, Grid, Head, Line, places_of, shown
from benchmark.board.published import Absent, Published
from benchmark.board.table import MARKS, Column, Row, Table, different, far
from benchmark.files import UserError
from benchmark.results.record import METRICS, Metric, same_images

if TYPE_CHECKING:
    from benchmark.board.plots import Look
    from benchmark.protocol import Protocol

SECOND = "sfid"  # its rank stands beside the headline's
PICTURES = (".webp", ".png")


@dataclass(frozen=True)
class Method:
    """What is said of a row besides its numbers."""

    method: str
    title: str
    note: str
    marks: str
    kind: str  # "trained", "training-free"
    year: int | None
    paper: str  # an address, or ""
    file: str  # an address, absolute or relative to the project's folder; "" where the method is not in methods/
    trained_as: str
    seeds: tuple[int, ...]
    verified: list[str]  # who has run it again, a line each
    complete: bool
    rank: int | None
    second: int | None  # by SECOND
    look: Look | None


@dataclass(frozen=True)
class Measure:
    """A measure's table, with what it means."""

    metric: str
    known: Metric
    grid: Grid


@dataclass(frozen=True)
class Plot:
    name: str
    caption: str
    note: str
    svg: str
    inline: str  # the same for the inside of a page
    is_wide: bool  # several panels


@dataclass(frozen=True)
class Size:
    """A cell whose samples can be looked at."""

    name: str  # "32x32-64x64"
    title: str
    width: int  # of a grid of samples, in pixels
    height: int
    real: str  # a grid of real images, or ""


@dataclass(frozen=True)
class Sheets:
    """The sample grids of a method: {name of a size: {seed: file}}, below grids/; some may be its base's."""

    method: Method
    files: dict[str, dict[int, str]]
    first: bool  # shown before anybody chooses


@dataclass(frozen=True)
class Gallery:
    sizes: list[Size]
    seeds: list[int]
    sheets: list[Sheets]
    size: str  # the one that is shown at first
    seed: int


@dataclass(frozen=True)
class Board:
    """A leaderboard."""

    name: str
    title: str
    count: int = 0  # samples a cell
    detector: str = ""
    hash: str = ""
    records: int = 0
    leader: str = ""
    verdict: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    marks: list[tuple[str, str]] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    about: Grid | None = None
    measures: list[Measure] = field(default_factory=list)
    front: Grid | None = None
    plots: list[Plot] = field(default_factory=list)
    gallery: Gallery | None = None
    sides: list[Grid] = field(default_factory=list)
    agreement: list[Grid] = field(default_factory=list)
    notes: str = ""
    absent: list[Absent] = field(default_factory=list)
    papers: list[Papers] = field(default_factory=list)
    planned: bool = False  # one of our protocols, without records yet

    @property
    def sections(self) -> dict[str, list[Measure]]:
        """The measures by the heading that they stand under; "" first."""
        found: dict[str, list[Measure]] = {"": []}
        for measure in self.measures:
            found.setdefault(measure.known.section, []).append(measure)
        return found

    @property
    def is_empty(self) -> bool:
        """Neither records nor papers."""
        return not self.methods and not self.papers


def repository() -> str:
    """Where the project's files can be seen, as an address that a path follows; "" where pyproject.toml names no place."""
    content = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    urls = {key.lower(): value for key, value in content["project"].get("urls", {}).items()}
    found = next((urls[key] for key in ("repository", "source", "homepage") if key in urls), "")
    return f"{found.rstrip('/')}/blob/main/" if found else ""


# ---------------------------------------------------------------------------------------------------------------------
# In words


def verdict(board: Table) -> str:
    """Who is first, by what rows are ranked by, and who is not different from it, among the complete rows of several seeds.

    A rehearsal says first what it is.
    """
    told, longer = _verdict(board), board.protocol.rehearses
    return f"A rehearsal of {longer}, too short to converge: its ranking is only indicative. {told}".strip() if longer else told


def _judged(board: Table) -> tuple[list[Row], list[Row]]:
    """The complete rows, and those of them with several seeds: only these are named as first or last."""
    complete = [row for row in board.rows if row.complete]
    return complete, [row for row in complete if len(row.seeds) > 1]


def _inline(row: Row, value: str = "") -> str:
    """A title in a sentence, with its value: "Sin-cos (interpolated, 5.3)" for "Sin-cos, interpolated"."""
    title, _, variant = row.title.partition(", ")
    if not variant and title.endswith(")") and " (" in title:  # "DyPE (NTK)"
        title, _, variant = title[:-1].partition(" (")
    inside = ", ".join(filter(None, (variant, value)))
    return f"{title} ({inside})" if inside else title


def _series(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _verdict(board: Table) -> str:
    column = board.headline
    complete, have = _judged(board)
    if len(have) < min(2, len(complete)):
        return f"No winner is named yet: {'only one' if have else 'no'} complete row has more than one seed."
    if not have:
        return ""
    entries = {row.method: row.entries["fid", column] for row in have}
    first, places = have[0], places_of(board, "fid")
    value = shown(entries[first.method], places)
    what = f"{'mean ' if column.is_mean else ''}FID {column.group} the training size"
    told = f"{_inline(first)} has the lowest {what} ({' '.join(filter(None, (value.text, value.detail)))})"
    differs = {row.method: different(entries[row.method], entries[first.method]) for row in have[1:]}
    if near := [_inline(row) for row in have[1:] if not differs[row.method]]:
        told += f", not significantly lower than {_series(near)}"
    if further := [_inline(row, shown(entries[row.method], places).text) for row in have[1:] if differs[row.method]][:3]:
        told += f". {_series(further)} {'follow' if len(further) > 1 else 'follows'}"
    compared = (
        f" Only the {len(have)} of {len(complete)} rows with several seeds are compared." if len(have) < len(complete) else ""
    )
    return f"{told}.{compared}"


# ---------------------------------------------------------------------------------------------------------------------
# Rows and tables


def _methods(board: Table, style: Mapping[str, Look]) -> list[Method]:
    ranks = {metric: board.ranks(metric) if metric in board.metrics else {} for metric in ("fid", SECOND)}
    known, place = registry.names(), repository()
    found = []
    for row in board.rows:
        about = registry.about(row.method) if row.method in known else None
        found.append(
            Method(
                row.method, row.title, row.note, row.marks,
                about.kind if about else "trained" if row.trained_as == row.method else "training-free",
                about.year if about else None, about.paper if about else "",
                f"{place}methods/{row.method}.py" if about else "", row.trained_as, row.seeds,
                [f"seed {item.seed}: {item.by}, {item.hardware}, {item.verdict}" for item in row.verified], row.complete,
                ranks["fid"].get(row.method), ranks[SECOND].get(row.method), style.get(row.method),
            )
        )  # fmt: skip
    return found


def _columns(board: Table) -> list[Column]:
    """Columns in the order of tables: the headline, then from the largest size down: the last are out of sight on a phone."""
    groups = ("beyond", "at", "below")
    return sorted(board.columns, key=lambda c: (groups.index(c.group), not c.is_mean, 0 if c.is_mean else -c.ratio))


def _head(column: Column, metric: str, one: bool) -> Head:
    title, below = column.words
    size = column.test if one else f"{column.train}-{column.test}"
    key = f"{metric}.{f'mean-{column.group}' if column.is_mean else size}"
    below = column.test if one and not column.is_mean else below
    return Head(title, below, key=key, group="mean" if column.is_mean else column.group, falls=METRICS[metric].sign < 0)


def _name(item: Method) -> Cell:
    return Cell(item.title, sort=item.title, link=item.file, marks=item.marks)


def _rank(place: int | None) -> Cell:
    return Cell("–") if place is None else Cell(str(place), sort=place)


def _paper(item: Method) -> Cell:
    text = str(item.year) if item.year else "paper" if item.paper else "–"
    return Cell(text, item.kind, sort=item.year, link=item.paper)


def _seeds(item: Method) -> Cell:
    return Cell(str(len(item.seeds)), sort=len(item.seeds))


def _measure(board: Table, methods: Sequence[Method], metric: str) -> Measure:
    known, places, columns = METRICS[metric], places_of(board, metric), _columns(board)
    one = len(board.protocol.cells) == 1
    main = metric == "fid"  # the table that carries what is said of rows, too
    heads = [Head("Method", words=True, key="name")]
    if main:
        heads += [Head("Rank", "FID", key="rank"), Head("Rank", METRICS[SECOND].title, key="rank-2")]
    heads += [_head(column, metric, one) for column in columns]
    if main:
        heads += [Head("Seeds", key="seeds", falls=True), Head("Paper", "kind", words=True, key="year")]
    rows = []
    for row, item in zip(board.rows, methods, strict=True):
        cells = [_name(item), *((_rank(item.rank), _rank(item.second)) if main else ())]
        cells += [shown(row.entries[metric, column], places) for column in columns]
        cells += [_seeds(item), _paper(item)] if main else []
        rows.append(Line(cells, row.method))
    return Measure(metric, known, Grid(f"{known.title} {known.arrow}", heads, rows))


def _front(board: Table, methods: Sequence[Method], most: int = 9) -> Grid:
    """The best rows with few columns: what they are ranked by, the training size and the square sizes beyond it.

    Rows with one seed only fill it up.
    """
    squares = sorted((c for c in board.pairs if c.is_square and c.group in ("at", "beyond")), key=lambda c: c.ratio)
    columns = [board.headline, *squares] if board.headline.is_mean else squares
    heads = [Head("Method", words=True), Head("Kind", words=True)]
    one = len(board.protocol.cells) == 1
    heads += [Head(f"FID ↓ {c.words[0]}", c.test if one and not c.is_mean else c.words[1]) for c in columns] + [Head("Seeds")]
    places = places_of(board, "fid")
    rows, known = [], list(zip(board.rows, methods, strict=True))
    several = [pair for pair in known if len(pair[0].seeds) > 1]
    chosen, which = (several, "methods with several seeds") if len(several) >= most else (known, "methods")
    for row, item in chosen[:most]:
        entries = [shown(row.entries["fid", column], places) for column in columns]
        cells = [Cell(cell.text, best=cell.best) for cell in entries]
        rows.append(Line([Cell(item.title, link=item.paper, marks=item.marks), Cell(item.kind), *cells, _seeds(item)]))
    return Grid("", heads, rows, f"the best {most} of {len(chosen)} {which}" if len(chosen) > most else "")


def _about(methods: Sequence[Method]) -> Grid:
    again = any(item.verified for item in methods)
    heads = [Head(title, words=True) for title in ("Method", "Checkpoint of", "Seeds", "Note", *(["Verified"] if again else []))]
    rows = []
    for item in methods:
        cells = [_name(item), Cell(item.trained_as), Cell(", ".join(map(str, item.seeds))), Cell(item.note or "–")]
        rows.append(Line([*cells, *([Cell("; ".join(item.verified) or "–")] if again else [])], item.method))
    return Grid("About the methods", heads, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def picture(folder: Path, name: str) -> str:
    """The picture of that name, whatever its format; "" where there is none."""
    return next((f"{name}{ending}" for ending in PICTURES if (folder / f"{name}{ending}").is_file()), "")


def _real(rules: Protocol, size: str, grids: Path) -> str:
    """The picture of real images at a test size: one that `generate` writes, else one added by hand, or ""."""
    if real.is_rendered(rules):
        return f"{real.FOLDER}/{size}.png"
    return picture(grids, f"{rules.name}/{real.FOLDER}/{size}")


def _samples(board: Table, row: Row, column: Column, seed: int, grids: Path) -> str:
    """The picture of a cell's samples, or "". Where they are its base's (the FIDs are equal), the base's may be the only one."""
    fids = [item.entries["fid", column].by_seed.get(seed) for item in board.rows if item.method in (row.method, row.trained_as)]
    same = len(fids) == 2 and same_images(*fids)
    own, base = (f"{board.protocol.name}/{name}/{column.train}-{column.test}-s{seed}" for name in (row.method, row.trained_as))
    return picture(grids, own) or (picture(grids, base) if same else "")


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture, without decoding it."""
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image") from None


def _gallery(board: Table, methods: Sequence[Method], grids: Path) -> Gallery | None:
    rules = board.protocol
    columns = [column for column in _columns(board) if not column.is_mean]
    found: dict[str, dict[str, dict[int, str]]] = {}  # method -> size -> seed -> file
    for row in board.rows:
        for column in columns:
            for seed in row.seeds:
                if name := _samples(board, row, column, seed, grids):
                    found.setdefault(row.method, {}).setdefault(f"{column.train}-{column.test}", {})[seed] = name
    sizes = []
    for column in columns:
        name = f"{column.train}-{column.test}"
        pictures = [picture for item in found.values() for picture in item.get(name, {}).values()]
        if pictures:
            width, height = picture_size(grids / pictures[0])
            sizes.append(Size(name, f"{column.test} ({column.ratio_label})" if len(rules.cells) == 1 else
                              f"{column.train} → {column.test} ({column.ratio_label})", width, height,
                              _real(rules, column.test, grids)))  # fmt: skip
    if not sizes:
        return None
    wanted = far(board.pairs, board.pairs[0].train)
    size = next((item.name for item in sizes if wanted and item.name == f"{wanted.train}-{wanted.test}"), sizes[0].name)
    seeds = sorted({seed for item in found.values() for cells in item.values() for seed in cells})
    counts = {seed: sum(seed in item.get(size, {}) for item in found.values()) for seed in seeds}
    have = [item for item in methods if item.method in found]
    chosen = {item.method for item in have if item.look} or {item.method for item in have[:8]}
    sheets = [Sheets(item, found[item.method], item.method in chosen) for item in have]
    return Gallery(sizes, seeds, sheets, size, max(seeds, key=lambda seed: (counts[seed], -seed)))


# ---------------------------------------------------------------------------------------------------------------------
# Everything at once


def _build(
    name: str, boards: Tables, figures: Published, notes: str, grids: Path, style: Mapping[str, Look], plots: list[Plot]
) -> Board:
    board = boards[name]
    title = (board.protocol.title if board else figures.leaderboards[name]) or name
    papers = {"absent": beside.absent(name, figures), "papers": beside.papers(name, figures, boards)}
    papers = papers if figures.of(name) else {}
    if board is None or not board.rows:
        rules = board.protocol if board else None
        known = {"count": rules.sample.count, "detector": rules.score.detector, "hash": rules.hash} if rules else {}
        return Board(name, title, planned=board is not None, **known, **papers)
    rules = board.protocol
    methods = _methods(board, style)
    complete, have = _judged(board)
    have = have if len(have) >= min(2, len(complete)) else []
    leader = [f"{row.title} ({shown(row.entries['fid', board.headline], places_of(board, 'fid')).text})" for row in have[:1]]
    used = "".join(item.marks for item in methods)
    side = beside.switches(board, boards)
    return Board(
        name, title, rules.sample.count, rules.score.detector, rules.hash, len(board.records), "".join(leader), verdict(board),
        facts(board), [(mark, meaning) for mark, meaning in MARKS.items() if mark in used], methods, _about(methods),
        [_measure(board, methods, metric) for metric in board.metrics], _front(board, methods),
        plots, _gallery(board, methods, grids),
        [*([side] if side else []), *beside.parts(board)], beside.agreement(board, figures), notes.strip(), **papers,
    )  # fmt: skip


def _relinked(note: str) -> str:
    """A note as part of a page, which lies one folder higher: relative links lead where they led from the note's own file."""

    def link(found: re.Match[str]) -> str:
        return f"]({posixpath.normpath(f'notes/{found[1]}')}" if found[1] else found[0]

    code = r"```.*?```|`[^`\n]*`|^ {4}[^\n]*"
    return re.sub(rf"{code}|\]\((?![A-Za-z][\w+.-]*:|[#/<])([^)\s]+)", link, note, flags=re.S | re.M)


def build(boards: Tables, figures: Published, out_folder: Path) -> list[Board]:
    """Every leaderboard, in the order of `boards`; hand-written notes and sample grids lie in `out_folder`."""
    from benchmark.board import plots  # matplotlib takes a second, which those who import this for less need not wait for

    style = plots.looks(board for board in boards.values() if board and board.rows)
    found = []
    for name in boards:
        note = out_folder / "notes" / f"{name}.md"
        text = _relinked(note.read_text(encoding="utf-8")) if note.is_file() else ""
        drawn = plots.draw(boards[name], style) if boards[name] and boards[name].rows else {}
        pictures = [Plot(plot, *told, plots.inline(told[-1]), plots.panels(told[-1]) > 1) for plot, told in drawn.items()]
        found.append(_build(name, boards, figures, text, out_folder / "grids", style, pictures))
    return found
