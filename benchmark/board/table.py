"""From records to the rows of a table: means over seeds, spreads, which values are best and which are not different.

Sums are exact (math.fsum) and orders are total, so the same records give the same table on every machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import files, protocol
from benchmark.files import UserError
from benchmark.protocol import Protocol, Switches
from benchmark.results import compare
from benchmark.results.record import METRICS, Record

LEVEL = 0.95
PARTS = files.ROOT / "leaderboards" / "parts.yaml"
GROUPS = ("below", "at", "beyond")
# The 97.5 % point of Student's t for 1, 2, ... degrees of freedom (two-sided 95 %): the usual table, to three decimals.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
ENOUGH = 3  # seeds, or degrees of freedom, that tell a spread


def group(train: str, test: str) -> str:
    """Where a test size stands: "at" the training size, "beyond" it on some axis, or else "below" it."""
    if train == test:
        return "at"
    bigger = [test_axis > axis for axis, test_axis in zip(protocol.size_hw(train), protocol.size_hw(test), strict=True)]
    return "beyond" if any(bigger) else "below"


def ratio_label(train: str, test: str) -> str:
    """ "2x", or "2x by 1.5x" (height by width) where the axes grow differently."""
    sizes = zip(protocol.size_hw(test), protocol.size_hw(train), strict=True)
    height, width = (f"{test_axis / axis:.3g}x" for test_axis, axis in sizes)
    return height if height == width else f"{height} by {width}"


@dataclass(frozen=True)
class Column:
    """A train -> test pair, or the mean over the pairs of one group (then `train` and `test` are empty)."""

    group: str
    train: str = ""
    test: str = ""

    @property
    def is_mean(self) -> bool:
        return not self.train

    @property
    def ratio(self) -> float:
        """Test over training size per axis, as the root of the areas' ratio."""
        return protocol.ratio(self.train, self.test)

    @property
    def ratio_label(self) -> str:
        return ratio_label(self.train, self.test)

    @property
    def is_square(self) -> bool:
        """Both axes grow by the same factor."""
        return not self.is_mean and "by" not in self.ratio_label


@dataclass
class Entry:
    """What a table shows at one row and column for one measure.

    `value` is the mean over seeds, `spread` their standard deviation (two seeds or more), `interval` the bootstrap
    interval over images (one seed). `by_seed`, `replicates` (seed -> [R]) and `usual`, the median of the column's
    spreads with its degrees of freedom, are what comparisons need.
    """

    value: float | None = None
    spread: float | None = None
    interval: tuple[float, float] | None = None
    by_seed: dict[int, float] = field(default_factory=dict)
    replicates: dict[int, np.ndarray] = field(default_factory=dict)
    failed: int = 0  # seeds whose cell failed
    best: bool = False
    usual: tuple[float, int] | None = None


@dataclass
class Row:
    """A method: what it calls itself, and its entries by (measure, column)."""

    method: str
    title: str
    note: str
    trained_as: str
    seeds: tuple[int, ...]
    stale: bool
    mixed: bool  # its records were made with different options
    missing: int  # cells (with seed) that were not run or failed, of those that the row should have
    entries: dict[tuple[str, Column], Entry]
    records: list[Record]

    @property
    def complete(self) -> bool:
        return not self.missing


@dataclass
class Table:
    """All rows of one contest, in the order of the leaderboard."""

    rules: Protocol
    records: list[Record]
    rows: list[Row]
    metrics: list[str]
    columns: list[Column]

    @property
    def pairs(self) -> list[Column]:
        return [column for column in self.columns if not column.is_mean]


def columns(rules: Protocol) -> list[Column]:
    """The pairs of a contest in its own order, then a mean for every group of several pairs.

    In-distribution and beyond never share a mean.
    """
    pairs = [Column(group(train, test), train, test) for train, test in rules.pairs()]
    sizes = {name: sum(pair.group == name for pair in pairs) for name in GROUPS}
    return pairs + [Column(name) for name in GROUPS if sizes[name] > 1]


def far(pairs: Iterable[Column], train: str) -> Column | None:
    """The square size nearest to twice a training size, which stands for all beyond it; None where there is none."""
    beyond = [column for column in pairs if column.train == train and column.group == "beyond" and column.is_square]
    return min(beyond, key=lambda column: (abs(column.ratio - 2), column.ratio), default=None)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _summary(by_seed: dict[int, float], replicates: dict[int, np.ndarray], failed: int = 0) -> Entry:
    """An entry from the values of its seeds."""
    if not by_seed:
        return Entry(failed=failed)
    values = list(by_seed.values())
    value, spread, ends = _mean(values), None, None
    if len(values) > 1:
        spread = statistics.stdev(values)
    elif replicates:
        ends = compare.interval(value, next(iter(replicates.values())), LEVEL)
    return Entry(value, spread, ends, by_seed, replicates, failed)


def _over(entry: Entry, seeds: Sequence[int]) -> Entry:
    """The entry over some of its seeds, or over all of them where none is given, without what is usual in its column."""
    if not seeds or set(seeds) == set(entry.by_seed):
        return replace(entry, usual=None)
    replicates = {seed: entry.replicates[seed] for seed in seeds if seed in entry.replicates}
    return _summary({seed: entry.by_seed[seed] for seed in seeds}, replicates)


def _entry(records: Sequence[Record], metric: str) -> Entry:
    """The entry of one method, pair and measure. A record's own interval is shown where there is one seed."""
    by_seed, replicates, failed = {}, {}, 0
    scores = {}
    for record in records:
        if record.scores is None:
            failed += 1
        elif metric in record.scores:
            scores[record.seed] = record.scores[metric]
    for seed, score in scores.items():
        by_seed[seed] = score["value"]
        if "replicates" in score:
            replicates[seed] = np.asarray(score["replicates"], np.float64)
    entry = _summary(by_seed, replicates, failed)
    if len(scores) == 1:
        (score,) = scores.values()
        entry.interval = (score["low"], score["high"]) if "low" in score else None
    return entry


def _mean_entry(entries: Sequence[Entry], seeds: Sequence[int]) -> Entry:
    """The mean over pairs, seed by seed; empty unless every pair has every seed."""
    if not entries or any(set(entry.by_seed) != set(seeds) for entry in entries):
        return Entry()
    by_seed = {seed: _mean(entry.by_seed[seed] for entry in entries) for seed in seeds}
    replicates = {}
    if all(set(entry.replicates) == set(seeds) for entry in entries):
        replicates = {seed: sum(entry.replicates[seed] for entry in entries) / len(entries) for seed in seeds}
    return _summary(by_seed, replicates)


def different(a: Entry, b: Entry) -> bool:
    """Whether two entries of a column differ, at 95 %.

    Over images: the paired bootstrap interval of the mean difference, over the seeds that both have, excludes zero.
    Over seeds, where both have three or more: so does the paired Student interval of the seeds' differences. With fewer there is
    no telling from these two alone, so the difference must exceed what the usual spread of the column's rows allows for
    two trainings; where the column does not know one, one seed is compared over images alone. All must hold.
    Without replicates and without common seeds, the difference exceeds what their intervals allow; where there are none either,
    nothing is known about the spread, and any difference counts.
    """
    if not set(a.by_seed) & set(b.by_seed):
        seeds_a, seeds_b = list(a.by_seed), list(b.by_seed)  # nothing to pair: each with its own seeds
    else:
        seeds_a = seeds_b = [seed for seed in a.by_seed if seed in b.by_seed]
    if set(seeds_a) <= set(a.replicates) and set(seeds_b) <= set(b.replicates):
        scores: list[dict[str, Any]] = []
        for entry, seeds in ((a, seeds_a), (b, seeds_b)):
            values = [entry.by_seed[seed] for seed in seeds]
            replicates = sum(entry.replicates[seed] for seed in seeds) / len(seeds)
            scores.append({"value": _mean(values), "replicates": replicates.tolist()})
        if (scores[0]["value"] - scores[1]["value"]) * (a.value - b.value) < 0:
            return False  # over the seeds that both have, the order is the other one
        if compare.compare(*scores, LEVEL).verdict == compare.NOT_DIFFERENT:
            return False
    usual = a.usual or b.usual
    if seeds_a == seeds_b and len(seeds_a) < ENOUGH and usual:
        spread, freedom = usual
        differences = [a.by_seed[seed] - b.by_seed[seed] for seed in seeds_a]
        if abs(_mean(differences)) <= STUDENT[min(freedom, len(STUDENT)) - 1] * spread * math.sqrt(2 / len(differences)):
            return False
    elif seeds_a == seeds_b and len(seeds_a) > 1:
        differences = [a.by_seed[seed] - b.by_seed[seed] for seed in seeds_a]
        quantile = STUDENT[min(len(differences) - 1, len(STUDENT)) - 1]
        return abs(_mean(differences)) > quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    if not (a.replicates and b.replicates):
        known = [half for half in (_half(a), _half(b)) if half is not None]
        if known:  # an entry about which nothing is known is taken to be as uncertain as the other
            return abs(a.value - b.value) > math.hypot(known[0], known[-1])
    return a.value != b.value


def _half(entry: Entry) -> float | None:
    """Half the width of an entry's 95 % interval, over seeds or else over images."""
    if entry.spread is not None:
        count = len(entry.by_seed)
        return STUDENT[min(count - 1, len(STUDENT)) - 1] * entry.spread / math.sqrt(count)
    return (entry.interval[1] - entry.interval[0]) / 2 if entry.interval is not None else None


def _mark_best(entries: Sequence[Entry], arrow: str) -> None:
    """Marks the best value of a column and everything that is not different from it."""
    present = [entry for entry in entries if entry.value is not None]
    if not present or not arrow:
        return
    sign = 1 if arrow == "↓" else -1
    top = min(present, key=lambda entry: sign * entry.value)
    for entry in present:
        entry.best = entry is top or not different(entry, top)


def _note_usual(entries: Sequence[Entry]) -> None:
    """Notes on a column's entries how trainings usually spread: the median, since a method that fails varies most."""
    known = [entry for entry in entries if entry.spread is not None]
    freedom = sum(len(entry.by_seed) - 1 for entry in known)
    if freedom >= ENOUGH:
        usual = statistics.median(entry.spread for entry in known), freedom
        for entry in entries:
            entry.usual = usual


def _row(method: str, records: list[Record], cols: list[Column], metrics: list[str]) -> Row:
    by_pair: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_pair.setdefault(record.pair, []).append(record)
    seeds = tuple(sorted({record.seed for record in records}))
    entries: dict[tuple[str, Column], Entry] = {}
    pairs = [column for column in cols if not column.is_mean]
    missing = len(pairs) * len(seeds) - sum(record.scores is not None for record in records)
    for metric in metrics:
        for column in pairs:
            entries[metric, column] = _entry(by_pair.get((column.train, column.test), []), metric)
        for column in cols:
            if column.is_mean:
                members = [entries[metric, pair] for pair in pairs if pair.group == column.group]
                entries[metric, column] = Entry() if missing else _mean_entry(members, seeds)
    speaker = min(records, key=lambda record: record.stale)  # the newest code may have changed the method's own words
    return Row(
        method=method,
        title=speaker.title,
        note=speaker.note,
        trained_as=speaker.value["method"]["trained_as"],
        seeds=seeds,
        stale=any(record.stale for record in records),
        mixed=any(record.value["method"]["options"] != speaker.value["method"]["options"] for record in records),
        missing=missing,
        entries=entries,
        records=records,
    )


def headline(row: Row, cols: Sequence[Column], metric: str = "fid") -> Entry:
    """What rows are ranked by: the mean FID beyond the training size; empty for a row that misses a cell.

    A contest with nothing beyond the training size is ranked by what it has.
    """
    if row.missing:
        return Entry()
    name = next(name for name in ("beyond", "at", "below") if any(column.group == name for column in cols))
    column = max((column for column in cols if column.group == name), key=lambda column: column.is_mean)
    return row.entries[metric, column]


def build(rules: Protocol, records: Iterable[Record]) -> Table:
    """The table of one contest. Rows that lack a cell or a seed come last and have no mean."""
    cols = columns(rules)
    order = {pair: place for place, pair in enumerate(rules.pairs())}
    kept = sorted(
        (record for record in records if record.protocol == rules.name),
        key=lambda record: (record.method, order[record.pair], record.seed),
    )
    metrics = [name for name in METRICS if any(record.scores and name in record.scores for record in kept)]
    by_method: dict[str, list[Record]] = {}
    for record in kept:
        by_method.setdefault(record.method, []).append(record)
    rows = [_row(method, members, cols, metrics) for method, members in by_method.items()]
    for metric in metrics:
        for column in cols:
            _note_usual([row.entries[metric, column] for row in rows])
            _mark_best([row.entries[metric, column] for row in rows], METRICS[metric].arrow)

    def rank(row: Row) -> tuple[int, float, str]:
        value = headline(row, cols).value if "fid" in metrics else None
        return row.missing, math.inf if value is None else value, row.method

    return Table(rules, kept, sorted(rows, key=rank), metrics, cols)


def decimals(values: Iterable[float]) -> int:
    """Decimals for a whole column or table: enough for three figures of its median."""
    sizes = sorted(abs(value) for value in values)
    middle = sizes[len(sizes) // 2] if sizes else 0.0
    return 1 if middle >= 10 else 2 if middle >= 1 else 3


def digits(table: Table, metric: str) -> int:
    """Decimals of a measure's whole table."""
    values = [row.entries[metric, column].value for row in table.rows for column in table.columns]
    return decimals(value for value in values if value is not None)


def show(entry: Entry, places: int) -> tuple[str, str]:
    """(value, what is known of its spread) as text: ("12.3", "± 0.4"), ("12.3", "11.9 to 12.8"), ("failed", ""), ("–", "")."""
    if entry.value is None:
        return ("failed" if entry.failed else "–"), ""
    detail = ""
    if entry.spread is not None:
        detail = f"± {entry.spread:.{places}f}"
    elif entry.interval is not None:
        detail = f"{entry.interval[0]:.{places}f} to {entry.interval[1]:.{places}f}"
    if entry.failed:
        detail += f" ({entry.failed} failed)"
    return f"{entry.value:.{places}f}", detail.strip()


def verdict(table: Table) -> str:
    """Who is first, by what rows are ranked by, and who is not different from it; "" where no row is complete."""
    have = [row for row in table.rows if "fid" in table.metrics and headline(row, table.columns).value is not None]
    if not have:
        return ""
    pairs = {pair.group for pair in table.pairs}
    where = "beyond" if "beyond" in pairs else "at" if "at" in pairs else "below"
    first = headline(have[0], table.columns)
    near = [row.title for row in have[1:] if not different(headline(row, table.columns), first)]
    value, detail = show(first, digits(table, "fid"))
    told = f"Lowest mean FID {where} the training size: {have[0].title}, {value}{f' ({detail})' if detail else ''}."
    if near:
        told += f" Not shown to differ from it: {', '.join(near)}."
    if len(have) > 1 + len(near):
        behind = have[-1]
        last = show(headline(behind, table.columns), digits(table, "fid"))[0]
        told += f" Last of {len(have)} complete rows: {behind.title}, {last}."
    return told


# ---------------------------------------------------------------------------------------------------------------------
# Tables beside the main ones


@dataclass(frozen=True)
class Side:
    """A small table: `rows` hold the method's title (and perhaps words), then cells of (value, detail, strong)."""

    title: str
    text: str
    header: list[str]
    words: int  # columns of words at the left
    rows: list[list[tuple[str, str, bool]]]


def _change(on: Entry, off: Entry, places: int) -> tuple[str, str, bool]:
    """An entry, its difference to another over the seeds that both have, and whether it is better and different."""
    if on.value is None:
        return (*show(on, places), False)
    common = [seed for seed in on.by_seed if seed in off.by_seed]
    if not common:
        return (*show(on, places), False)
    moved = _mean(on.by_seed[seed] - off.by_seed[seed] for seed in common)
    detail = f"{moved:+.{places}f}"
    if set(common) != set(on.by_seed) | set(off.by_seed):  # then the shown values do not subtract to it
        detail += f" (seed{'s' if len(common) > 1 else ''} {', '.join(map(str, common))})"
    return f"{on.value:.{places}f}", detail, moved < 0 and different(on, off)


def _on(chosen: Switches) -> str:
    """The switches that are not at rest, as text."""
    rest = vars(Switches())
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in vars(chosen).items() if value != rest[key])


def _rests(rules: Protocol) -> dict[str, Any]:
    """What contests of other switches have in common: the rules without switches and sizes, and the trainings."""
    kept = {key: value for key, value in rules.rules().items() if key not in ("switches", "cells")}
    return kept | {"trainings": {train: rules.training(train) for train in rules.cells}}


def switches(board: Table, boards: Mapping[str, Table | None]) -> Side | None:
    """Every method's FID with the switches of the contest off and on, at the square sizes beyond the training size.

    None unless a contest differs in its switches alone; it may have fewer cells.
    """
    if board.rules.switches != Switches() or "fid" not in board.metrics:
        return None
    others = [other for other in boards.values() if other and other.rows and other.rules.switches != Switches()]
    others = [other for other in others if _rests(other.rules) == _rests(board.rules)]
    cols = [column for column in board.pairs if column.group == "beyond" and column.is_square]
    cols = [column for column in cols if all(column in other.columns for other in others)]
    if not others or not cols:
        return None
    names = {other.rules.name: _on(other.rules.switches) for other in others}
    places = digits(board, "fid")
    rows = []
    for row in board.rows:
        counterparts = [next((item for item in other.rows if item.method == row.method), None) for other in others]
        if not any(counterparts):
            continue
        have = [set(item.entries["fid", column].by_seed) for item in (row, *counterparts) if item for column in cols]
        seeds = sorted(set.intersection(*have))
        cells = [(row.title, "", False), (", ".join(map(str, seeds)) or "none in common", "", False)]
        for column in cols:
            off = _over(row.entries["fid", column], seeds)
            cells.append((*show(off, places), False))
            for item in counterparts:
                on = None if item is None else _over(item.entries["fid", column], seeds)
                cells.append(("–", "", False) if on is None else _change(on, off, places))
        rows.append(cells)
    header = ["Method", "Seeds"]
    for column in cols:
        header += [f"{column.ratio_label}|off", *(f"{column.ratio_label}|{names[other.rules.name]}" for other in others)]
    text = (
        "The same checkpoints, sampled again with one switch of the contest on for every method (a temperature of its own is off "
        "where the switch scales attention). FID ↓ over the seeds that all of them have, and below it the change; bold where it "
        "is lower and different for these checkpoints: over images and, with several seeds, over them; not corrected for the "
        "number of comparisons, about one in forty would be bold by chance. At the training size no switch does "
        f"anything. Whole tables: {', '.join(names)}."
    )
    return Side("The contest's switches, off and on", text, header, 2, rows)


def parts(board: Table, path: Path | str = PARTS) -> list[Side]:
    """What the parts of a method bring: rows of the contest that differ from it in one part, as the file of parts lists them."""
    import yaml

    try:
        listed = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        listed = {str(whole): {str(name): str(what) for name, what in members.items()} for whole, members in listed.items()}
    except FileNotFoundError:
        return []
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must map methods to their parts ({' '.join(str(error).split())})") from None
    rows = {row.method: row for row in board.rows}
    cols = [column for column in board.columns if column.is_mean or column.group == "at" or column.ratio_label == "2x"]
    found = []
    for whole, members in listed.items():
        if "fid" not in board.metrics or whole not in rows or not set(members) & set(rows):
            continue
        places = digits(board, "fid")
        lines = [[(rows[whole].title, "", False), ("the whole", "", False)]]
        lines[0] += [(*show(rows[whole].entries["fid", column], places), False) for column in cols]
        for name, what in members.items():
            if name in rows:
                changes = [_change(rows[name].entries["fid", c], rows[whole].entries["fid", c], places) for c in cols]
                lines.append([(rows[name].title, "", False), (what, "", False), *changes])
        header = ["Method", "What it has", *("|".join(column_title(c) if c.is_mean else column_title(c)[::-1]) for c in cols)]
        text = (
            "FID ↓, and below it the difference to the whole over the seeds that both have; bold where it is lower and different."
        )
        found.append(Side(f"What the parts of {rows[whole].title} bring", text, header, 2, lines))
    return found


MARKS = {
    "†": "stale: the code behind some of its numbers has changed since; run its cells again",
    "‡": "incomplete: a cell or a seed is missing or failed, so there is no mean",
    "§": "mixed: its records were made with different options",
}


def marks(row: Row) -> str:
    """The signs of MARKS that a row carries."""
    return "".join(mark for mark, on in zip(MARKS, (row.stale, not row.complete, row.mixed), strict=True) if on)


def column_title(column: Column) -> tuple[str, str]:
    """Two lines for a header: ("32x32 → 64x64", "2x") or ("mean", "beyond")."""
    return ("mean", column.group) if column.is_mean else (f"{column.train} → {column.test}", column.ratio_label)


def facts(table: Table) -> list[tuple[str, str]]:
    """What all numbers of a table have in common, as (what, text)."""
    rules, records = table.rules, table.records
    found = [
        ("Rules", f"protocol {rules.name}, hash {rules.hash}"),
        ("Samples", f"N = {rules.sample.count:,} per cell"),
        ("Detector", f"{rules.score.detector}{_hashes(r.value['detector']['hash'] for r in records)}"),
        ("Data", f"{rules.data.card}{_hashes(r.value['data']['hash'] for r in records)}"),
    ]
    references = {record.test: record.value["reference"]["hash"] for record in records}
    sizes = [pair.test for pair in table.pairs if pair.test in references]
    each = ", ".join(f"{size} {references[size]}" for size in dict.fromkeys(sizes))
    found.append(("Reference", f"{rules.score.reference:,} images at every test size{': ' + each if each else ''}"))
    train, sample = rules.train, rules.sample
    found.append(("Training", f"{train.steps:,} steps of {train.batch}, {rules.objective.name} objective"))
    found.append(("Sampling", f"{sample.solver}, {sample.steps} steps, guidance {sample.guidance:g}"))
    switches = rules.switches
    found.append(("Switches", f"attention scale {switches.attention_scale}, timestep shift {switches.timestep_shift}"))
    if records:
        known = records[0].value["uncertainty"]
        found.append(("Intervals", f"{known['method']}, {known['resamples']} resamples, {100 * known['level']:g} %"))
    return found


def _hashes(values: Iterable[str]) -> str:
    found = sorted(set(values))
    return f", hash {', '.join(found)}" if found else ""
