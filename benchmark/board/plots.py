"""Plots of a contest as SVG text: the same records give the same bytes.

Text stays text, and everything that is not a method's colour is drawn in `currentColor`, so that a plot follows the
light or dark theme of where it is shown. Every method has its own colour, marker and line style: no plot needs colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmark.board import table
from benchmark.board.table import Column, Entry, Row, Table
from benchmark.results.record import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "fid": "FID against the ratio of test to training size",
    "is": "Inception score against the ratio of test to training size",
    "tradeoff": "FID at the training size against FID beyond it",
    "cost": "Minutes for a training and for each cell",
}
INK = "#010203"  # stands for currentColor while matplotlib draws
THEME = "<style>:root{color:#1f2328}@media (prefers-color-scheme:dark){:root{color:#d1d7e0}}</style>"
# Okabe and Ito's colours (a lighter blue; no black and yellow, which vanish on one of the grounds); then purple, ink and brown.
COLOURS = ("#1a7fc4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", INK, "#a5673f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (8, 2)), (0, (2, 2)), (0, (4, 1, 1, 1)))
OTHER = "#8b949e"
RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.visible": False,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    dash: Any
    label: str  # "" for a method among the others
    shift: float  # from -1 to 1: its place in a bunch at one x


def looks(board: Table, most: int = len(COLOURS)) -> dict[str, Look]:
    """A look for every method; the contest's own, then those with most seeds, then the best have theirs, the rest a quiet one.

    Looks go by the order of names, so that a method keeps its own when ranks change.
    """
    place = {row.method: rank for rank, row in enumerate(board.rows)}
    own = board.rules.methods
    order = sorted(board.rows, key=lambda row: (row.method not in own, row.missing > 0, -len(row.seeds), place[row.method]))
    first = order[:most]
    named = sorted(row.method for row in first)
    titles = {row.method: row.title for row in board.rows}
    found = {}
    for row in board.rows:
        if row.method in named:
            number = named.index(row.method)
            shift = 0.0 if len(named) == 1 else 2 * number / (len(named) - 1) - 1
            label = titles[row.method] if len(titles[row.method]) <= 32 else titles[row.method][:31] + "…"
            label = f" {label}" if label.startswith("_") else label  # matplotlib keeps those out of legends
            found[row.method] = Look(COLOURS[number], MARKERS[number], DASHES[number], label, shift)
        else:
            found[row.method] = Look(OTHER, ".", "-", "", 0.0)
    return found


def _reach(entry: Entry) -> tuple[float, float]:
    """How far an entry's bar goes below and above its value."""
    if entry.spread is not None:
        return entry.spread, entry.spread
    if entry.interval is not None:
        return max(entry.value - entry.interval[0], 0.0), max(entry.interval[1] - entry.value, 0.0)
    return 0.0, 0.0


def _line(axes: Axes, look: Look, xs: Sequence[float], entries: Sequence[Entry]) -> None:
    bars = list(zip(*map(_reach, entries), strict=True))
    quiet = not look.label
    axes.errorbar(
        xs, [entry.value for entry in entries], yerr=None if quiet else bars, color=look.colour, marker=look.marker,
        linestyle=look.dash, linewidth=0.9 if quiet else 1.8, markersize=3 if quiet else 6, alpha=0.55 if quiet else 1,
        elinewidth=1.2, capsize=2.5, label=look.label or "_", zorder=1 if quiet else 2,
    )  # fmt: skip


def _legend(figure: Figure, axes: Axes, order: Sequence[str], others: int) -> None:
    """The legend beside the plot, from the best down; `order` are labels."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    kept = [label for label in order if label in known]
    handles = [known[label] for label in kept]
    if others:
        handles.append(Line2D([], [], color=OTHER, marker=".", linewidth=0.9, alpha=0.55))
        kept.append(f"{others} other{'s' if others > 1 else ''}")
    figure.legend(handles, kept, loc="outside right upper", handlelength=3.2)


def _ratio_ticks(axes: Axes, ratios: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, [f"{ratio:.3g}x" for ratio in ratios])
    axes.xaxis.set_minor_locator(NullLocator())


def _plain_log(axis: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _by_ratio(board: Table, metric: str) -> Figure | None:
    from matplotlib.figure import Figure

    trains = list(dict.fromkeys(column.train for column in board.pairs))
    panels = {
        train: sorted((c for c in board.pairs if c.train == train and c.is_square), key=lambda column: column.ratio)
        for train in trains
    }
    panels = {train: squares for train, squares in panels.items() if len(squares) > 1}
    if metric not in board.metrics or not panels:
        return None
    style = looks(board)
    figure = Figure(figsize=(3.6 + 4.2 * len(panels), 4.4))
    spread = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    sign = 1 if METRICS[metric].arrow == "↓" else -1
    last: dict[str, float] = {}
    for axes, (train, squares) in zip(spread, panels.items(), strict=True):
        for row in board.rows:
            found = [(column, row.entries[metric, column]) for column in squares]
            found = [(column, entry) for column, entry in found if entry.value is not None]
            if found:
                look = style[row.method]
                xs = [column.ratio * 2 ** (0.02 * look.shift) for column, _ in found]
                _line(axes, look, xs, [entry for _, entry in found])
                last.setdefault(look.label, sign * found[-1][1].value)
        _ratio_ticks(axes, [column.ratio for column in squares])
        axes.axvline(1, color=INK, linewidth=0.8, alpha=0.35, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlabel("test size / training size, per axis")
        axes.set_title(f"trained at {train}")
        axes.grid(axis="y")
        if metric == "fid" and all(entry.value > 0 for row in board.rows for entry in _values(row, metric, squares)):
            axes.set_yscale("log")
            _plain_log(axes.yaxis)
    spread[0].set_ylabel(f"{METRICS[metric].title} {METRICS[metric].arrow}")
    order = sorted((label for label in last if label), key=lambda label: last[label])
    _legend(figure, spread[0], order, sum(not style[row.method].label for row in board.rows))
    return figure


def _values(row: Row, metric: str, columns: Sequence[Column]) -> list[Entry]:
    return [entry for column in columns if (entry := row.entries[metric, column]).value is not None]


def _tradeoff(board: Table) -> Figure | None:
    from matplotlib.figure import Figure

    at = [column for column in board.pairs if column.group == "at"]
    if "fid" not in board.metrics or not at:
        return None
    far = table.far(board.pairs, at[0].train)
    if far is None:
        return None
    style = looks(board)
    figure = Figure(figsize=(7.8, 4.4))
    axes = figure.subplots()
    order = []
    for row in sorted(board.rows, key=lambda row: (row.entries["fid", far].value or 0.0, row.method)):
        x, y = row.entries["fid", at[0]], row.entries["fid", far]
        if x.value is None or y.value is None or x.value <= 0 or y.value <= 0:
            continue
        look = style[row.method]
        quiet = not look.label
        axes.errorbar(
            [x.value], [y.value], xerr=None if quiet else [[item] for item in _reach(x)],
            yerr=None if quiet else [[item] for item in _reach(y)], color=look.colour, marker=look.marker,
            markersize=5 if quiet else 8, alpha=0.55 if quiet else 1, elinewidth=1.2, capsize=2.5, linestyle="none",
            label=look.label or "_", zorder=1 if quiet else 2,
        )  # fmt: skip
        order.append(look.label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8, alpha=0.35, linestyle=(0, (4, 3)), zorder=0)
    axes.grid()
    axes.set_xlabel(f"FID ↓ at the training size, {' → '.join((at[0].train, at[0].test))}")
    axes.set_ylabel(f"FID ↓ at {far.ratio_label}, {' → '.join((far.train, far.test))}")
    _legend(figure, axes, [label for label in order if label], sum(not style[row.method].label for row in board.rows))
    return figure


def _cost(board: Table) -> Figure | None:
    from matplotlib.figure import Figure

    style = looks(board)
    trains = list(dict.fromkeys(column.train for column in board.pairs))
    if len(trains) == 1:
        places = ["training", *(column.test for column in board.pairs)]
    else:
        places = [f"training\n{train}" for train in trains] + [f"{c.train}\n→ {c.test}" for c in board.pairs]
    figure = Figure(figsize=(max(7.8, 2.4 + 0.68 * len(places)), 4.4))
    axes = figure.subplots()
    total: dict[str, float] = {}
    for row in board.rows:
        minutes: dict[int, list[float]] = {}
        for record in row.records:
            hours = record.value["hours"]
            cell = len(trains) + [(c.train, c.test) for c in board.pairs].index(record.pair)
            minutes.setdefault(cell, []).append(60 * (hours["sample"] + hours["score"]))
            if record.value["training"]["hours"] is not None:
                minutes.setdefault(trains.index(record.train), []).append(60 * record.value["training"]["hours"])
        means = {cell: sum(values) / len(values) for cell, values in sorted(minutes.items()) if sum(values) > 0}
        look = style[row.method]
        quiet = not look.label
        axes.plot(
            [cell + 0.28 * look.shift for cell in means], list(means.values()), color=look.colour, marker=look.marker,
            linestyle="none", markersize=3 if quiet else 6, alpha=0.55 if quiet else 1, label=look.label or "_",
        )  # fmt: skip
        total[look.label] = sum(means.values())
    axes.set_yscale("log")
    _plain_log(axes.yaxis)
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.6, len(places) - 0.4)
    for edge in range(len(places) - 1):
        axes.axvline(edge + 0.5, color=INK, alpha=0.12, linewidth=0.8)
    axes.grid(axis="y")
    axes.set_ylabel("minutes")
    machines = sorted({record.value["hardware"]["name"] for record in board.records})
    where = machines[0] if len(machines) == 1 else f"{len(machines)} kinds of machine"
    axes.set_title(f"sampling and scoring N = {board.rules.sample.count:,}, on {where}")
    order = [label for label in sorted(total, key=lambda label: total[label]) if label]
    _legend(figure, axes, order, sum(not style[row.method].label for row in board.rows))
    return figure


def svg(figure: Figure, name: str, caption: str) -> str:
    """The figure as SVG text without a date, version or size in points, in the theme's own colours."""
    stream = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", metadata=metadata, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    # Several plots share one page: an id belongs to its plot.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    head, _, rest = text.partition(">")
    return f"{head}>{THEME}{rest}"


def inline(svg: str) -> str:
    """A plot for the inside of a page, which has a theme of its own."""
    return svg.replace(THEME, "", 1)


def draw(board: Table) -> dict[str, str]:
    """The plots that a contest has data for: "<protocol>-<kind>" -> SVG, kinds as in CAPTIONS."""
    import matplotlib

    makers: dict[str, Callable[[], Figure | None]] = {
        "fid": lambda: _by_ratio(board, "fid"),
        "is": lambda: _by_ratio(board, "is"),
        "tradeoff": lambda: _tradeoff(board),
        "cost": lambda: _cost(board),
    }
    drawn = {}
    for kind, make in makers.items():
        name = f"{board.rules.name}-{kind}"
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC | {"svg.hashsalt": name})
            figure = make()
            if figure is not None:
                drawn[name] = svg(figure, name, CAPTIONS[kind])
    return drawn
