"""Progress display: one live display in a terminal, plain lines otherwise. Independent of the stages."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN_EVERY = 15.0  # seconds between two lines where there is no terminal
WIDE = 100  # columns from which a bar fits beside title and figures


class Stage:
    """A counted piece of work. `advance` is called as it goes on; figures such as the loss are shown beside the count.

    Args:
        title: what is being done, such as "train extrapolation 32x32".
        total: of the count.
        unit: what is counted, such as "step".
        start: the count that an earlier, interrupted run had reached; speed and time left do not count it.
    """

    def __init__(self, title: str, total: int, unit: str, start: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.start = self.done = start
        self.figures = ""
        self.began = self.counted = time.monotonic()

    def advance(self, count: int = 1, figures: str = "") -> None:
        self.set(self.done + count, figures)

    def report(self, done: int, total: int) -> None:
        """The count and its total, where that is only known on the way; one that does not grow begins another pass."""
        if done <= self.done:
            self.start, self.began = 0, self.counted
        self.total = total
        self.set(done)

    def set(self, done: int, figures: str = "") -> None:
        self.done, self.counted = done, time.monotonic()
        self.figures = figures or self.figures
        self.show()

    def show(self) -> None:
        """Draws the state, in the two displays; every rank but the first has none."""

    @property
    def elapsed(self) -> float:
        """Seconds since this run began the work."""
        return time.monotonic() - self.began

    @property
    def speed(self) -> float:
        """Units a second in this run."""
        return (self.done - self.start) / max(self.elapsed, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds to go at this run's speed; None before there is one."""
        return (self.total - self.done) / self.speed if self.done > self.start else None

    def line(self) -> str:
        """The state as one plain line."""
        left = "" if self.left is None else f"  {clock(self.left)} left"
        left = f"  in {clock(self.elapsed)}" if self.done >= self.total else left
        figures = f"  {self.figures}" if self.figures else ""
        speed = f"  {rate(self.speed)} {self.unit}/s" if self.done > self.start else ""
        return f"{self.title}  {self.done}/{self.total} {self.unit}{'s' if self.total != 1 else ''}{speed}{figures}{left}"


class Plain(Stage):
    """A line now and then."""

    last = 0.0

    def show(self) -> None:
        now = time.monotonic()
        if self.done >= self.total or now - (self.last or self.began) >= PLAIN_EVERY:
            self.last = now
            print(self.line(), flush=True)


class Live(Stage):
    """A bar in a terminal, redrawn in place."""

    def open(self) -> None:
        from rich import get_console
        from rich.progress import BarColumn, Progress, TextColumn

        wide = get_console().width >= WIDE
        self.bars = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            *([BarColumn(bar_width=None)] if wide else []),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}s"),
            TextColumn("{task.fields[speed]}", style="cyan", markup=False),
            TextColumn("{task.fields[figures]}", style="magenta", markup=False),
            TextColumn("{task.fields[left]}", style="green", markup=False),
            expand=wide,
        )
        self.task = self.bars.add_task(
            self.title, total=self.total, completed=self.start, unit=self.unit, speed="", figures="", left=""
        )
        self.bars.start()

    def show(self) -> None:
        left = "" if self.left is None else f"{clock(self.left)} left"
        left = f"in {clock(self.elapsed)}" if self.done >= self.total else left
        speed = f"{rate(self.speed)}/s" if self.done > self.start else ""
        self.bars.update(self.task, total=self.total, completed=self.done, speed=speed, figures=self.figures, left=left)


@contextmanager
def stage(title: str, total: int, unit: str = "step", start: int = 0) -> Iterator[Stage]:
    """Shows a piece of work while the block runs: live in a terminal, else as lines, on the first rank only."""
    if not first_rank():
        yield Stage(title, total, unit, start)  # shows nothing
        return
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield Plain(title, total, unit, start)
        return
    live = Live(title, total, unit, start)
    live.open()
    try:
        yield live
    finally:
        live.bars.live.transient = live.done == live.start  # work that was already complete leaves no bar behind
        live.bars.stop()


def say(message: str) -> None:
    """One line to the person, from the first rank only."""
    if first_rank():
        print(message, flush=True)


_alone = False


def speak_alone() -> None:
    """Says that this process is no rank of a larger run, whatever SLURM's variables say."""
    global _alone
    _alone = True


def first_rank() -> bool:
    """Whether this process speaks for all: it is the only one, or rank 0 (by Lightning's, torchrun's or SLURM's variables)."""
    if _alone:
        return True
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID") if "RANK" not in os.environ else ("RANK",)
    return all(os.environ.get(name, "0") == "0" for name in names)


def rate(speed: float) -> str:
    """A speed to three digits, large ones in full: 0.123, 12.3, 12300."""
    return f"{speed:.3g}" if speed < 1000 else f"{speed:.0f}"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
