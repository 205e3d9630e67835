"""Reproduces a committed row, and compares each value with the committed record and the paper's figure, with a verdict.

The run keeps the committed protocol and stays in its own folder; no committed record is touched.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import rich.table
from rich.console import Console

from benchmark import progress
from benchmark.board import published, table
from benchmark.files import UserError, below, listed, read_json, write_text
from benchmark.identity import Cell, cells_of
from benchmark.plan import report as plan
from benchmark.plan.place import Run
from benchmark.plan.stages import Score, Stage, Train, graph
from benchmark.protocol import Protocol
from benchmark.results import compare, record, verified
from benchmark.results.verified import IDENTICAL, REPRODUCED, SPREAD
from benchmark.run import local

METRICS = ("fid", "is")
LEVEL = 0.95  # of all intervals of a row together, over images as over seeds
DIFFERS, ABSENT, FAILED = "differs", "no committed record", "failed"

Records = dict[Cell, dict[str, Any]]
Committed = dict[tuple[str, str, int], record.Record]  # by training size, test size and seed
Usual = dict[tuple[str, str, str], tuple[float, int] | None]  # by training size, test size and measure: see `table.Entry`


@dataclass(frozen=True)
class Verdict:
    """What a difference between our value and the committed one amounts to.

    Attributes:
        word: identical to the last written digit; reproduced: the interval of the difference over images holds zero; within
            the seeds' spread: ours lies where another training would be expected; differs.
        difference: ours minus the committed value.
        low, high: of the difference, over images.
    """

    word: str
    difference: float
    low: float
    high: float


def judge(
    ours: dict[str, Any],
    committed: dict[str, Any],
    seeds: Sequence[float] = (),
    values: int = 1,
    usual: tuple[float, int] | None = None,
) -> Verdict:
    """Compares a score of ours with the committed one of the same cell.

    Args:
        ours, committed: scores of records.
        seeds: the committed values of all seeds, the committed one's included.
        values: that are judged together, so that the intervals of each are wider (Bonferroni's correction).
        usual: how trainings spread in the column, as in `table.Entry`; a few seeds alone tell little of it.
    """
    if ours["value"] == committed["value"]:
        return Verdict(IDENTICAL, 0.0, 0.0, 0.0)
    difference = ours["value"] - committed["value"]
    if len(ours.get("replicates", [])) == len(committed.get("replicates", [])) > 0:
        found = compare.compare(ours, committed)
        low, high = found.low, found.high
    else:  # no pairs: the two intervals, as if independent
        half = math.hypot(*((score["high"] - score["low"]) / 2 for score in (ours, committed)))
        low, high = difference - half, difference + half
    # 200 replicates have no quantiles so far out: the interval at 95 % is stretched as a normal one would be.
    stretch = NormalDist().inv_cdf((1 + level_of(values)) / 2) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    low, high = difference - stretch * (difference - low), difference + stretch * (high - difference)
    if low <= 0 <= high:
        return Verdict(REPRODUCED, difference, low, high)
    within = expected(ours["value"], seeds, usual, level_of(values))
    return Verdict(SPREAD if within else DIFFERS, difference, low, high)


def level_of(values: int) -> float:
    """The level of one interval among `values` that hold together at LEVEL."""
    return 1 - (1 - LEVEL) / values


def expected(value: float, seeds: Sequence[float], usual: tuple[float, int] | None = None, level: float = LEVEL) -> bool:
    """Whether a value lies where one more seed's is expected; False where nothing is known of how seeds spread."""
    band = table.predicted(seeds, usual, level) if seeds else None
    return band is not None and band[0] <= value <= band[1]


@dataclass(frozen=True)
class Line:
    """One measure of one cell: ours, the committed one and the paper's."""

    cell: Cell
    metric: str
    ours: dict[str, Any] | None
    committed: dict[str, Any] | None
    paper: float | None
    verdict: Verdict | None
    note: str = ""

    @property
    def word(self) -> str:
        if self.ours is None:
            return FAILED
        return self.verdict.word if self.verdict else ABSENT


def run_row(protocol: Protocol, method: str, seed: int, run: Run) -> tuple[Records, list[tuple[Stage, str]]]:
    """Runs a method's row, or resumes it, with its records beside the run.

    Returns:
        ({cell: its record}, [(stage, reason) of those that failed]).
    """
    stages = graph(protocol, [method], seed, run)
    failures = local.run_all(stages)
    values = {stage.cell: read_json(stage.file) for stage in stages if isinstance(stage, Score) and stage.is_complete()}
    return values, failures


def committed_of(protocol: Protocol, method: str, folder: Path | str = record.FOLDER) -> Committed:
    """The committed records of a row, by training size, test size and seed; none for a protocol that has no leaderboard."""
    found = {}
    if protocol.ranked and not protocol.custom:
        for path in sorted(Path(folder, protocol.name, method).glob("*.json")):
            item = record.read(path, protocol)
            found[item.train, item.test, item.seed] = item
    return found


def usual_of(protocol: Protocol, method: str, folder: Path | str = record.FOLDER) -> Usual:
    """How trainings usually spread around a row's values, from all committed records of its protocol."""
    board = table.build(protocol, record.read_all(folder))
    row = next((row for row in board.rows if row.method == method), None)
    if row is None:
        return {}
    return {
        (column.train, column.test, metric): row.entries[metric, column].usual for column in board.pairs for metric in METRICS
    }


def figure(protocol: Protocol, cell: Cell, metric: str, figures: published.Published) -> tuple[float | None, str]:
    """(the paper's value for a cell, where it stands), where a published table names the protocol as its own."""
    for source in figures.tables:
        trainings = [training for training, name in source.here.items() if name == protocol.name]
        if source.train != cell.train:
            continue
        for row in source.rows:
            if row.ours == cell.method and row.training in trainings and row.cells.get(cell.test):
                where = f"paper: {source.paper}, table {source.table}, {row.name}"
                if source.samples != protocol.sample.count:
                    where += f"; {source.samples:,} samples there, {protocol.sample.count:,} here"
                return row.cells[cell.test][published.METRICS.index(metric)], where
    return None, ""


def compare_row(
    protocol: Protocol,
    values: Records,
    cells: Sequence[Cell],
    committed: Committed,
    figures: published.Published,
    usual: Usual,
) -> list[Line]:
    """Every cell's measures, ours beside the committed and published ones."""
    lines: list[Line] = []
    judged = len(METRICS) * len(cells)
    for cell in cells:
        ours = (values.get(cell) or {}).get("scores") or {}
        pair = {seed: item for (train, test, seed), item in committed.items() if (train, test) == (cell.train, cell.test)}
        same = pair.get(cell.seed)
        for metric in METRICS:
            score = ours.get(metric)
            theirs = same.scores.get(metric) if same and same.scores else None
            seeds = [item.scores[metric]["value"] for item in pair.values() if item.scores]
            spread = usual.get((cell.train, cell.test, metric))
            verdict = judge(score, theirs, seeds, judged, spread) if score and theirs else None
            if score and not theirs and len(seeds) > 1:  # another seed than the committed ones: what their spread allows
                word = SPREAD if expected(score["value"], seeds, spread, level_of(judged)) else DIFFERS
                gap = score["value"] - float(np.mean(seeds))
                verdict, theirs = Verdict(word, gap, math.nan, math.nan), {"value": float(np.mean(seeds))}
            paper, note = figure(protocol, cell, metric, figures)
            if same and same.stale:
                note = "; ".join(filter(None, [note, "the committed record was made with other code"]))
            lines.append(Line(cell, metric, score, theirs, paper, verdict, note))
    return lines


def show(lines: Sequence[Line], protocol: Protocol, method: str, seed: int) -> rich.table.Table:
    """The comparison as a table for a terminal."""
    shown = rich.table.Table(title=f"{method} under {protocol.name} ({protocol.hash}), seed {seed}", title_justify="left")
    wide = f"difference ({100 * level_of(len(lines)):.4g} %)"
    for column in ("cell", "", "ours (95 %)", "committed (95 %)", wide, "paper", "ours − paper", "verdict"):
        shown.add_column(column, justify="left" if column in ("cell", "", "verdict") else "right")
    for line in lines:
        gap = line.ours["value"] - line.paper if line.ours and line.paper is not None else None
        difference = "–"
        if line.verdict:
            difference = f"{line.verdict.difference:+.4g}"
            if not math.isnan(line.verdict.low):
                difference += f" ({line.verdict.low:+.3g} to {line.verdict.high:+.3g})"
        first = line.metric == METRICS[0]
        shown.add_row(
            f"{line.cell.train} -> {line.cell.test}" if first else "", record.METRICS[line.metric].title, number(line.ours),
            number(line.committed), difference, "–" if line.paper is None else f"{line.paper:g}",
            "–" if gap is None else f"{gap:+.4g}", line.word,
            style="bold red" if line.word in (DIFFERS, FAILED) else "",
        )  # fmt: skip
    return shown


def number(score: dict[str, Any] | None) -> str:
    """A value with its interval."""
    if score is None:
        return "–"
    ends = f" ({score['low']:.4g} to {score['high']:.4g})" if "low" in score else ""
    return f"{score['value']:.5g}{ends}"


def summary(lines: Sequence[Line]) -> list[str]:
    """What the table amounts to, in words."""
    words = [line.word for line in lines]
    said = [", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) + f" of {len(words)} values"]
    if all(line.paper is None for line in lines):
        said.append("No paper reports numbers for these cells.")
    said += list(dict.fromkeys(line.note for line in lines if line.note))
    return said


def entry(lines: Sequence[Line], values: Records, committed: Committed, seed: int) -> str:
    """What leaderboards/verified.yaml would say of this run, but for the name; "" where it does not verify the row."""
    words = {line.word for line in lines}
    same = [item for item in committed.values() if item.seed == seed]
    if not words <= set(verified.VERDICTS) or any(item.stale or item.scores is None for item in same):
        return ""
    worst = max(words, key=verified.VERDICTS.index)
    hardware = next(iter(values.values()))["hardware"]["name"]
    return verified.entry_text(same, hardware, worst)


def recorded_seeds(protocol: Protocol, method: str) -> list[int]:
    """The seeds under which a row has committed records.

    Raises:
        UserError: it has none, so that there is nothing to reproduce; said before any work.
    """
    seeds = sorted({seed for _, _, seed in committed_of(protocol, method)})
    if not seeds:
        kind = "custom settings" if protocol.custom else f"protocol '{protocol.name}'"
        bench = plan.make_bench(protocol, method)
        raise UserError(
            f"{method} has no committed record for {kind}, so there is nothing to reproduce; run the row with `{bench}`"
        )
    return seeds


def spent(committed: Committed, seed: int) -> str:
    """The hours of a committed row, and the machines, which need not be the same for its training and its cells."""
    row = [item.value for item in committed.values() if item.seed == seed]
    training, cells = row[0]["training"], sum(value["hours"]["sample"] + value["hours"]["score"] for value in row)
    told = f"{plan.show_hours(cells)} to sample and score on {listed(sorted({value['hardware']['name'] for value in row}))}"
    if not training["hours"]:
        return told
    where = f" on {training['machine']}" if "machine" in training else ""
    where += f" in {training['precision']}" if "precision" in training else ""
    where += ", with --compile," if training.get("compiled") else ""
    return f"{plan.show_hours(training['hours'])} to train{where} and {told}"


def reuses(protocol: Protocol, method: str, seed: int, run: Run) -> bool:
    """Whether a row's weights lay in OUT before any reproduction there.

    A file notes every training that a reproduction finds unfinished. So one that was stopped late still verifies the row when
    it goes on, and so do the rows of other methods that use the same weights.
    """
    given = False
    for stage in graph(protocol, [method], seed, run):
        if isinstance(stage, Train):
            noted = below(run.out, "reproductions", stage.training.folder(run.out, data="").name)
            if noted.is_file():
                continue
            if stage.is_complete():
                given = True
            else:
                write_text(noted, "")
    return given


def reproduce(protocol: Protocol, method: str, seed: int | None, run: Run) -> list[Line]:
    """Runs or resumes a row and prints the comparison.

    Args:
        seed: None takes the first that is recorded.

    Returns:
        its lines.

    Raises:
        UserError: there is no committed record; or a cell failed, printed with the others before.
    """
    seeds = recorded_seeds(protocol, method)
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UserError(f"{method} has committed records for seed {', '.join(map(str, seeds))}, but none for {seed}")
    local.check(run)
    committed, usual = committed_of(protocol, method), usual_of(protocol, method)
    progress.say(f"{method}, seed {seed}: the committed row took {spent(committed, seed)}")
    given = reuses(protocol, method, seed, run)
    values, failures = run_row(protocol, method, seed, run)
    cells = cells_of(protocol, [method], seed)
    lines = compare_row(protocol, values, cells, committed, published.load(), usual)
    console = Console(width=None if sys.stdout.isatty() else 180, markup=False)
    console.print(show(lines, protocol, method, seed))
    for text in summary(lines):
        console.print(text, highlight=False)
    if given:
        console.print(f"Its weights already existed in {run.out} and were reused; choose another OUT to make new ones.")
    elif text := entry(lines, values, committed, seed):
        console.print(f"Not your own row? Add this to leaderboards/{verified.NAME}, with your name, and open a pull request:")
        print(f"\n{text}")
    local.raise_for(failures)
    return lines
