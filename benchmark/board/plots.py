"""Plots of a protocol as SVG text: the same records give the same bytes.

Text stays text, and everything that is not a method's colour is drawn in `currentColor`, so that a plot follows the
light or dark theme of where it is shown. A method has the same colour, marker and line style in every plot of every
protocol; methods without a colour are grey, and say their names under the pointer.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmark.board import table
from benchmark.board.table import Entry, Row, Table
from benchmark.results.record import METRICS

CAPTIONS = {
    "tradeoff": "FID at the largest size against FID at the training size",
    "cost": "Minutes per training and per cell",
}
NOTES = {
    "tradeoff": "Further left: better at the training size. Further down: better beyond it. "
    "FIDs at the two sizes have different reference images and are not on one scale.",
    "cost": "Wall-clock time on one type of machine, which may have been busy with other work: small differences mean nothing.",
}
BY_RATIO = "Square sizes only.{} Bars: ± one standard deviation over seeds; with one seed, the 95 % interval over images."
INK = "#010203"  # stands for currentColor while matplotlib draws
THEME = "<style>:root{color:#1f2328}@media (prefers-color-scheme:dark){:root{color:#d1d7e0}}</style>"
# All can be seen on white and on black. The first is also that of plots with a single line.
COLOURS = (
    "#1a7fc4", "#d55e00", "#009e73", "#cc6fa8", "#e0a100", "#8465c9", "#a5673f", "#26b0c9", "#d0394f", "#8aa32a", "#6d86a8", INK,
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (8, 2)), (0, (2, 2)), (0, (4, 1, 1, 1)),
          (0, (6, 1)), (0, (1, 2)), (0, (3, 2, 1, 2)))  # fmt: skip
BEST = 4  # complete rows of a protocol that have a colour besides its own methods
OTHER = "#8b949e"
WIDTH, HEIGHT, LEGEND = 4.6, 3.3, 2.1  # inches: a panel, and what the legend takes beside it
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
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.visible": False,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}
QUIET = {"color": OTHER, "marker": ".", "linestyle": "-", "linewidth": 1.0, "markersize": 4, "alpha": 0.5, "zorder": 1}


@dataclass(frozen=True)
class Look:
    """How a method is drawn wherever it is drawn in colour."""

    colour: str
    marker: str
    dash: Any
    shift: float  # from -1 to 1: its place in a bunch at one x

    @property
    def css(self) -> tuple[str, str]:
        """(colour, dashes of a line) as a page's legend wants them."""
        dashes = (
            {"-": "", "--": "5 3", "-.": "6 2 1 2"}[self.dash] if isinstance(self.dash, str) else " ".join(map(str, self.dash[1]))
        )
        return self.colour.replace(INK, "currentColor"), dashes


def looks(boards: Iterable[Table]) -> dict[str, Look]:
    """A look for the methods that stand out: every protocol's own, those with several seeds, and the best of each.

    A method's colour follows from its name, and from the other names only where two names ask for the same: in the order of
    names, the later takes the next that is free. So a method keeps its colour when ranks change.
    """
    asking: dict[str, tuple[bool, int]] = {}
    for board in boards:
        complete = [row.method for row in board.rows if row.complete]
        for place, row in enumerate(board.rows):
            own = row.method in board.protocol.methods or len(row.seeds) > 1
            if own or row.method in complete[:BEST]:
                asking[row.method] = min(asking.get(row.method, (True, place)), (not own, place))
    chosen = sorted(asking, key=lambda method: (asking[method], method))[: len(COLOURS)]
    free = list(range(len(COLOURS)))
    found = {}
    for number, method in enumerate(sorted(chosen)):
        wanted = int(hashlib.sha256(method.encode()).hexdigest()[:8], 16) % len(COLOURS)
        slot = min(free, key=lambda item: (item - wanted) % len(COLOURS))
        free.remove(slot)
        shift = 2 * number / (len(chosen) - 1) - 1 if len(chosen) > 1 else 0.0
        found[method] = Look(COLOURS[slot], MARKERS[slot], DASHES[slot], shift)
    return found


class _Canvas:
    """A figure whose panels have fixed places, so that the legend beside them can be cut off."""

    def __init__(self, panels: int, style: Mapping[str, Look]) -> None:
        self.panels, self.style, self.artists = panels, style, 0
        wide = panels * WIDTH
        self.figure = Figure(figsize=(wide + LEGEND, HEIGHT), layout="none")
        self.axes = self.figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        total = wide + LEGEND
        self.figure.subplots_adjust(0.62 / total, 0.55 / HEIGHT, (wide - 0.15) / total, 1 - 0.32 / HEIGHT, wspace=0.08)

    def draw(self, axes: Axes, row: Row, xs: Sequence[float], ys: Sequence[float], xerr=None, yerr=None, line=True) -> None:
        """A row's points, with bars where it has a look of its own."""
        look = self.style.get(row.method)
        if look is None:
            given = QUIET | ({} if line else {"linestyle": "none", "markersize": 6})
            self._sign(axes.plot(xs, ys, **given), row)
            return
        drawn = axes.errorbar(
            xs, ys, xerr=xerr, yerr=yerr, color=look.colour, marker=look.marker, linestyle=look.dash if line else "none",
            linewidth=1.7, markersize=5.5 if line else 7, elinewidth=1.3, zorder=2,
        )  # fmt: skip
        self._sign([drawn.lines[0], *drawn.lines[1], *drawn.lines[2]], row)

    def _sign(self, artists: Iterable[Artist], row: Row) -> None:
        """Notes on artists whose they are; `svg` turns that into a name under the pointer."""
        for artist in artists:
            artist.set_gid(f"method--{row.method}--{self.artists}")
            self.artists += 1

    def legend(self, rows: Sequence[Row]) -> None:
        """The legend beside the plot, in the order of rows."""
        known = [row for row in rows if row.method in self.style]
        looks = [self.style[row.method] for row in known]
        handles = [Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, markersize=5) for look in looks]
        labels = [row.title if len(row.title) <= 26 else f"{row.title[:25]}…" for row in known]
        if others := len(rows) - len(known):
            handles.append(Line2D([], [], **{key: value for key, value in QUIET.items() if key != "zorder"}))
            labels.append(f"{others} other{'s' if others > 1 else ''}")
        edge = self.panels * WIDTH / (self.panels * WIDTH + LEGEND)
        shown = self.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(edge, 0.97), handlelength=2.8)
        shown.set_gid("legend")


def _reach(entry: Entry) -> tuple[float, float]:
    """How far an entry's bar goes below and above its value."""
    if entry.spread is not None:
        return entry.spread, entry.spread
    if entry.interval is not None:
        return max(entry.value - entry.interval[0], 0.0), max(entry.interval[1] - entry.value, 0.0)
    return 0.0, 0.0


def _bars(entries: Sequence[Entry]) -> list[tuple[float, ...]]:
    return list(zip(*map(_reach, entries), strict=True))


def _plain_log(axis: Any, span: float = math.inf) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5, 10, ..., or at more where the values span less than a decade."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span > 10 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _by_ratio(board: Table, metric: str, style: Mapping[str, Look]) -> Figure | None:
    trains = list(dict.fromkeys(column.train for column in board.pairs))
    panels = {
        train: sorted((c for c in board.pairs if c.train == train and c.is_square), key=lambda column: column.ratio)
        for train in trains
    }
    panels = {train: squares for train, squares in panels.items() if len(squares) > 1}
    entries = [row.entries[metric, column].value for row in board.rows for squares in panels.values() for column in squares]
    if not any(value is not None for value in entries):
        return None
    canvas = _Canvas(len(panels), style)
    for axes, (train, squares) in zip(canvas.axes, panels.items(), strict=True):
        for row in board.rows:
            found = [(column, row.entries[metric, column]) for column in squares]
            found = [(column, entry) for column, entry in found if entry.value is not None]
            if found:
                shift = style[row.method].shift if row.method in style else 0.0
                xs = [column.ratio * 2 ** (0.02 * shift) for column, _ in found]
                ys = [entry.value for _, entry in found]
                canvas.draw(axes, row, xs, ys, yerr=_bars([entry for _, entry in found]))
        axes.set_xscale("log", base=2)
        axes.set_xticks([column.ratio for column in squares], [f"{column.ratio:.3g}x" for column in squares])
        axes.minorticks_off()
        if any(column.group == "at" for column in squares):
            axes.axvline(1, color=INK, linewidth=0.8, alpha=0.35, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlabel("test size / training size, per axis")
        axes.set_title(f"trained at {train}")
        axes.grid(axis="y")
        if METRICS[metric].sign > 0 and all(value is None or value > 0 for value in entries):
            axes.set_yscale("log")
            shown = [value for value in entries if value is not None]
            _plain_log(axes.yaxis, max(shown) / min(shown))
    canvas.axes[0].set_ylabel(f"{METRICS[metric].title} {METRICS[metric].arrow}")
    canvas.legend(board.rows)
    return canvas.figure


def _tradeoff(board: Table, style: Mapping[str, Look]) -> Figure | None:
    at = [column for column in board.pairs if column.group == "at"]
    far = table.far(board.pairs, at[0].train) if at else None
    if far is None:
        return None
    canvas = _Canvas(1, style)
    axes = canvas.axes[0]
    for row in board.rows:
        x, y = row.entries["fid", at[0]], row.entries["fid", far]
        if x.value is not None and y.value is not None and x.value > 0 and y.value > 0:
            canvas.draw(axes, row, [x.value], [y.value], _bars([x]), _bars([y]), line=False)
    if not canvas.artists:
        return None
    axes.set(xscale="log", yscale="log")
    axes.margins(0.08, 0.16)  # room for the words in the corners
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    axes.grid()
    words = {"ha": "left", "fontsize": 8, "alpha": 0.6, "transform": axes.transAxes}
    axes.text(0.02, 0.98, "good at the training size only", va="top", **words)
    axes.text(0.02, 0.02, "good at both", va="bottom", **words)
    axes.text(0.98, 0.02, "good beyond it, at a cost at 1x", va="bottom", **words | {"ha": "right"})
    axes.set_xlabel(f"← better   FID at the training size, {at[0].test}")
    axes.set_ylabel(f"← better   FID at {far.ratio_label}, {far.test}")
    canvas.legend(board.rows)
    return canvas.figure


def _cost(board: Table, style: Mapping[str, Look]) -> Figure | None:
    machines = {record.value["hardware"]["name"] for record in board.records}
    if len(machines) != 1:  # what differs would be the machines, not the methods
        return None
    (machine,) = machines
    trainings = [record.value["training"] for record in board.records]
    if not any(training["hours"] and training.get("machine") == machine for training in trainings):
        return None  # the seconds that cells take are mostly start-up
    trains = list(dict.fromkeys(column.train for column in board.pairs))
    pairs = [(column.train, column.test) for column in board.pairs]
    one = len(trains) == 1
    places = ["training" if one else f"training\n{train}" for train in trains]
    places += [column.test if one else f"{column.train}\n→ {column.test}" for column in board.pairs]
    canvas = _Canvas(1, style)
    axes = canvas.axes[0]
    for row in board.rows:
        minutes: dict[int, list[float]] = {}
        for record in row.records:
            hours, training = record.value["hours"], record.value["training"]["hours"]
            if hours["sample"]:  # older records say 0 for images that they share with another method's cell
                minutes.setdefault(len(trains) + pairs.index(record.pair), []).append(60 * (hours["sample"] + hours["score"]))
            if training is not None and record.value["training"].get("machine") == machine:
                minutes.setdefault(trains.index(record.train), []).append(60 * training)
        means = {cell: sum(values) / len(values) for cell, values in sorted(minutes.items()) if sum(values) > 0}
        if means:
            shift = style[row.method].shift if row.method in style else 0.0
            canvas.draw(axes, row, [cell + 0.28 * shift for cell in means], list(means.values()), line=False)
    axes.set_yscale("log")
    _plain_log(axes.yaxis)
    axes.set_xticks(range(len(places)), places, fontsize=7 if one else 6)
    axes.set_xlim(-0.6, len(places) - 0.4)
    for edge in range(len(places) - 1):
        axes.axvline(edge + 0.5, color=INK, alpha=0.12, linewidth=0.8)
    axes.grid(axis="y")
    axes.set_ylabel("minutes")
    axes.set_title(f"N = {board.protocol.sample.count:,}, on {machine if len(machine) <= 40 else machine[:39] + '…'}")
    canvas.legend(board.rows)
    return canvas.figure


# ---------------------------------------------------------------------------------------------------------------------
# As text


def svg(figure: Figure, name: str, caption: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as SVG text without a date, version or size in points, in the theme's own colours.

    Args:
        titles: the names of methods, which what is theirs shows under the pointer.
    """
    stream = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", metadata=metadata, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    text = _short(re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2))

    def sign(found: re.Match[str]) -> str:
        title = html.escape((titles or {})[found[2]])
        return f'{found[1]} data-m="{found[2]}"><title>{title}</title>'

    text = re.sub(r'(<g id="method--([a-z0-9_]+)--\d+")>', sign, text)
    # Several plots share one page: an id belongs to its plot.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1)
    head, _, rest = text.partition(">")
    return f"{head}>{THEME}{rest}"


def _short(text: str) -> str:
    """SVG text with two decimals of a point in its tags, where matplotlib writes six, and without indentation."""
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\d+\.\d{3,}", lambda number: f"{round(float(number[0]), 2):g}", tag[0]), text)
    return re.sub(r"\n {2,}", "\n", text)


def panels(text: str) -> int:
    """How many panels a plot has beside each other."""
    return round((float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1]) / 72 - LEGEND) / WIDTH)


def inline(text: str) -> str:
    """A plot for the inside of a page, which has a theme and a legend of its own."""
    text = text.replace(THEME, "", 1)
    legend = re.search(r'<g id="[\w-]*legend">', text)
    if legend is None:
        return text
    before, (_, end, after) = text[: legend.start()], text[legend.end() :].partition(" </g>\n <defs>")
    wide = re.search(r'viewBox="0 0 ([\d.]+) ', before)
    return before.replace(wide[0], f'viewBox="0 0 {float(wide[1]) - 72 * LEGEND:g} ', 1) + end + after


def draw(board: Table, style: Mapping[str, Look]) -> dict[str, tuple[str, str, str]]:
    """The plots that a protocol has data for: "<protocol>-<kind>" -> (caption, what it says, SVG)."""
    firsts = [metric for metric in board.metrics if not METRICS[metric].section]
    by_ratio = BY_RATIO.format(" Dashed: the training size." if any(column.group == "at" for column in board.pairs) else "")
    makers: dict[str, tuple[str, str, Callable[[], Figure | None]]] = {
        metric: (f"{METRICS[metric].title} against the ratio of test to training size", by_ratio,
                 lambda metric=metric: _by_ratio(board, metric, style)) for metric in firsts
    }  # fmt: skip
    for kind, make in (("tradeoff", _tradeoff), ("cost", _cost)):
        makers[kind] = CAPTIONS[kind], NOTES[kind], lambda make=make: make(board, style)
    titles = {row.method: row.title for row in board.rows}
    drawn = {}
    for kind, (caption, note, make) in makers.items():
        name = f"{board.protocol.name}-{kind}"
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC | {"svg.hashsalt": name})
            figure = make()
            if figure is not None:
                drawn[name] = caption, note, svg(figure, name, caption, titles)
    return drawn
