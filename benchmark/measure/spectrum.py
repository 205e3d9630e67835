"""The figure of the rotary methods' frequencies at the training grid and at twice its size, plotted from the code itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from benchmark import registry
from benchmark.board import plots
from benchmark.files import ROOT, write_text
from benchmark.protocol import Core, Protocol

FILE = ROOT / "leaderboards" / "spectrum.svg"
TRAINED, STRETCH, BASE, HEAD = 16, 2, 100.0, 64  # tokens an axis, test grid over training grid, rotary base, head width
TIMES = (1.0, 0.5)  # noise levels shown of methods that look at it


class Spectrum(NamedTuple):
    """One panel: rotations of every frequency band across the training and the test grid, and the factor on cos and sin."""

    title: str
    trained: list[float]
    tested: list[float]
    attention_factor: float


def spectra() -> list[Spectrum]:
    """A spectrum of the shared method, then of each that changes its frequencies, by title."""
    size, large = (f"{8 * 2 * n}x{8 * 2 * n}" for n in (TRAINED, STRETCH * TRAINED))
    rules = Protocol("spectrum", "", {size: [size, large]}, core=Core(width=HEAD, depth=1, heads=1, patch=16, rope_base=BASE))
    base = registry.load(registry.shared())
    found = []
    for name in registry.names():
        cls = registry.load(name)
        if cls is not base and (cls.trains_as != registry.shared() or cls.theta is base.theta):
            continue
        method = registry.build(name, rules, size, 0)
        for time in TIMES if cls.timed else (None,):
            title = cls.title if time is None else f"{cls.title}, t = {time:g}"
            rotations = [
                (tested * method.theta(TRAINED, tested, time) / (2 * math.pi)).tolist() for tested in (TRAINED, STRETCH * TRAINED)
            ]
            found.append(Spectrum(title, *rotations, method.attention_factor(STRETCH)))
    return sorted(found, key=lambda one: (one.title != base.title, one.title.lower()))


def draw(path: Path = FILE) -> Path:
    """Writes the figure as SVG, the same bytes each time, and returns its path."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = spectra()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(plots.RC | {"svg.hashsalt": "spectrum", "font.size": 8, "axes.titlesize": 9})
        columns = 4
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(9, 1.75 * rows + 0.6))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            plain = [STRETCH * rotations for rotations in panels[0].trained]
            axes.axhline(1, color=plots.INK, linewidth=0.6, alpha=0.4)
            axes.plot(plain, color=plots.OTHER, linewidth=1, linestyle=(0, (2, 2)))
            axes.plot(panel.trained, color=plots.OTHER, linewidth=1.2)
            axes.plot(panel.tested, color=plots.COLOURS[0], linewidth=1.6, marker="o", markersize=2.5)
            axes.set_yscale("log")
            axes.set_yticks([0.1, 1], ["0.1", "1"])
            axes.minorticks_off()
            axes.grid(True)
            axes.set_title(panel.title)
            if panel.attention_factor != 1:
                words = f"cos, sin × {panel.attention_factor:.3f}"
                axes.text(0.97, 0.9, words, transform=axes.transAxes, ha="right", va="top", fontsize=7)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("rotations")
        for axes in grid[-1]:
            axes.set_xlabel("frequency band")
        lines = [
            Line2D([], [], color=plots.OTHER, linewidth=1.2, label="training grid"),
            Line2D([], [], color=plots.COLOURS[0], linewidth=1.6, marker="o", markersize=2.5, label=f"{STRETCH} x that grid"),
            Line2D([], [], color=plots.OTHER, linewidth=1, linestyle=(0, (2, 2)), label=f"{panels[0].title} at {STRETCH} x"),
        ]
        figure.legend(handles=lines, loc="outside lower center", ncols=3)
        caption = f"Rotations of each frequency band across the grid, at {TRAINED} tokens an axis and at {STRETCH * TRAINED}"
        write_text(path, plots.svg(figure, "spectrum", caption) + "\n")
    return path
