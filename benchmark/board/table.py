"""From records to table rows: means over seeds, spreads, the best values and those not significantly different from them.

Sums are exact (math.fsum) and orders are total, so the same records give the same table on every machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import gammaincinv, stdtrit  # what scipy.stats' chi2 and t call; to import that takes more than a second

from benchmark import protocol
from benchmark.protocol import Protocol
from benchmark.results import compare
from benchmark.results.record import METRICS, Record
from benchmark.results.verified import Entry as Verified

LEVEL = 0.95
GROUPS = ("below", "at", "beyond")
ENOUGH = 3  # seeds that tell a row's own spread
FREEDOM = 2  # degrees of freedom that tell the usual spread of a column
FEW = 5  # rows with images of their own, below which a column may be marked throughout
PAIRED = 5  # common seeds from which two rows are judged by their own differences: with three, Student's t is 4.3
MARKS = {
    "†": "stale: the code behind some of its numbers has changed since; rerun its cells",
    "‡": "incomplete: a cell or a seed is missing or failed, so there is no mean",
    "§": "mixed: its records were made with different options",
    "¹": "one seed: not named in the sentence above the tables, as another seed may change its place",
    "✓": "verified: somebody else has rerun one of its seeds",
    "new": "in this run: shown with the committed records, or in their place",
}


def student(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors a two-sided interval of Student's t reaches to either side."""
    return float(stdtrit(freedom, (1 + level) / 2))


def median_of_spread(freedom: int) -> float:
    """The median of a sample standard deviation in units of the true one: sqrt(chi2 / freedom)."""
    return math.sqrt(2 * float(gammaincinv(freedom / 2, 0.5)) / freedom)


def group(train: str, test: str) -> str:
    """Where a test size stands: "at" the training size, "beyond" it on some axis, or else "below" it."""
    if train == test:
        return "at"
    bigger = [test_axis > axis for axis, test_axis in zip(protocol.size_hw(train), protocol.size_hw(test), strict=True)]
    return "beyond" if any(bigger) else "below"


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
        """ "2x", or "2x by 1.5x" (height by width) where the axes grow differently."""
        sizes = zip(protocol.size_hw(self.test), protocol.size_hw(self.train), strict=True)
        height, width = (f"{test_axis / axis:.3g}x" for test_axis, axis in sizes)
        return height if height == width else f"{height} by {width}"

    @property
    def is_square(self) -> bool:
        """Both axes grow by the same factor."""
        return not self.is_mean and "by" not in self.ratio_label

    @property
    def words(self) -> tuple[str, str]:
        """Two lines for a heading: ("2x", "32x32 → 64x64") or ("mean", "beyond")."""
        return ("mean", self.group) if self.is_mean else (self.ratio_label, f"{self.train} → {self.test}")


@dataclass
class Entry:
    """What a table shows at one row and column for one measure.

    `value` is the mean over seeds, `spread` their standard deviation (two seeds or more), `interval` the bootstrap
    interval over images (one seed). `by_seed`, `replicates` (seed -> [R]) and `usual`, the typical spread of the
    column at this value with its degrees of freedom, are what comparisons need.
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
    verified: list[Verified] = field(default_factory=list)
    new: bool = False  # of a run that the committed records stand beside

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def marks(self) -> str:
        """The signs of MARKS that the row carries."""
        holds = (self.stale, not self.complete, self.mixed, len(self.seeds) == 1, bool(self.verified), self.new)
        return "".join(f" {mark}" if mark.isalpha() else mark for mark, on in zip(MARKS, holds, strict=True) if on).strip()


@dataclass
class Table:
    """All rows of one protocol, in the order of the leaderboard."""

    protocol: Protocol
    records: list[Record]
    rows: list[Row]
    metrics: list[str]
    columns: list[Column]

    @property
    def pairs(self) -> list[Column]:
        return [column for column in self.columns if not column.is_mean]

    @property
    def headline(self) -> Column:
        """What rows are ranked by: the mean beyond the training size, or what there is where nothing lies beyond."""
        name = next(name for name in ("beyond", "at", "below") if any(column.group == name for column in self.columns))
        return max((column for column in self.columns if column.group == name), key=lambda column: column.is_mean)

    def ranks(self, metric: str) -> dict[str, int]:
        """{method: its place, from 1} by a measure's headline, of the complete rows that have it."""
        sign = METRICS[metric].sign
        values = {row.method: row.entries[metric, self.headline].value for row in self.rows if row.complete}
        order = sorted((sign * value, method) for method, value in values.items() if value is not None)
        return {method: place for place, (_, method) in enumerate(order, start=1)}


def columns(rules: Protocol) -> list[Column]:
    """The pairs of a protocol in its own order, then a mean for every group of several pairs.

    In-distribution and beyond never share a mean.
    """
    pairs = [Column(group(train, test), train, test) for train, test in rules.pairs()]
    sizes = {name: sum(pair.group == name for pair in pairs) for name in GROUPS}
    return pairs + [Column(name) for name in GROUPS if sizes[name] > 1]


def far(pairs: Iterable[Column], train: str) -> Column | None:
    """The square size nearest to twice a training size, which stands for all beyond it; None where there is none."""
    beyond = [column for column in pairs if column.train == train and column.group == "beyond" and column.is_square]
    return min(beyond, key=lambda column: (abs(column.ratio - 2), column.ratio), default=None)


def mean(values: Iterable[float]) -> float:
    """The exact mean."""
    values = list(values)
    return math.fsum(values) / len(values)


def _summary(by_seed: dict[int, float], replicates: dict[int, np.ndarray], failed: int = 0) -> Entry:
    """An entry from the values of its seeds."""
    if not by_seed:
        return Entry(failed=failed)
    values = list(by_seed.values())
    value, spread, ends = mean(values), None, None
    if len(values) > 1:
        spread = statistics.stdev(values)
    elif replicates:
        ends = compare.interval(value, next(iter(replicates.values())), LEVEL)
    return Entry(value, spread, ends, by_seed, replicates, failed)


def over(entry: Entry, seeds: Sequence[int]) -> Entry:
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
        entry.interval = METRICS[metric].ends(score)
    return entry


def _mean_entry(entries: Sequence[Entry], seeds: Sequence[int]) -> Entry:
    """The mean over pairs, seed by seed; empty unless every pair has every seed."""
    if not entries or any(set(entry.by_seed) != set(seeds) for entry in entries):
        return Entry()
    by_seed = {seed: mean(entry.by_seed[seed] for entry in entries) for seed in seeds}
    replicates = {}
    if all(set(entry.replicates) == set(seeds) for entry in entries):
        replicates = {seed: sum(entry.replicates[seed] for entry in entries) / len(entries) for seed in seeds}
    found = _summary(by_seed, replicates)
    ends = [entry.interval for entry in entries if entry.interval]
    if len(seeds) == 1 and not replicates and len(ends) == len(entries):
        low, high = zip(*ends, strict=True)
        found.interval = mean(low), mean(high)  # nothing pairs the sizes here: this is what they allow at most
    return found


def different(a: Entry, b: Entry) -> bool:
    """Whether two entries of a column differ, at 95 %. What is known of images and what is known of seeds must both say so.

    Images, for measures with resamples: the paired bootstrap interval of the mean difference, over the seeds that both have,
    excludes zero.
    Seeds: with five or more common ones, so does the paired Student interval of their differences. With fewer these two alone
    tell little, so the difference must exceed what the spread of trainings allows: the column's usual one, or the row's own
    where that is larger. The level is nominal, for families that vary alike: where two rows vary several times as much as usual,
    more than one in twenty equal pairs counts as different, above all where rows have one seed, whose own spread is unknown.
    If no usual spread is known, three common seeds have to do.
    Where neither is known, the entries' own intervals decide; and where there are none either, any difference counts.
    """
    common = [seed for seed in a.by_seed if seed in b.by_seed]
    seeds_a, seeds_b = common or list(a.by_seed), common or list(b.by_seed)  # nothing to pair: each with its own seeds
    paired = set(seeds_a) <= set(a.replicates) and set(seeds_b) <= set(b.replicates)
    if paired:
        scores: list[dict[str, Any]] = []
        for entry, seeds in ((a, seeds_a), (b, seeds_b)):
            values = [entry.by_seed[seed] for seed in seeds]
            replicates = sum(entry.replicates[seed] for seed in seeds) / len(seeds)
            scores.append({"value": mean(values), "replicates": replicates.tolist()})
        if (scores[0]["value"] - scores[1]["value"]) * (a.value - b.value) < 0:
            return False  # over the seeds that both have, the order is the other one
        if compare.compare(*scores, LEVEL).verdict == compare.NOT_DIFFERENT:
            return False
    usual = (a.usual or b.usual, b.usual or a.usual)
    if len(common) >= (PAIRED if usual[0] else ENOUGH):
        differences = [a.by_seed[seed] - b.by_seed[seed] for seed in common]
        return abs(mean(differences)) > student(len(common) - 1) * statistics.stdev(differences) / math.sqrt(len(common))
    if usual[0]:
        values = [[entry.by_seed[seed] for seed in seeds] for entry, seeds in ((a, seeds_a), (b, seeds_b))]
        errors = [
            max(spread, entry.spread or 0.0) / math.sqrt(len(own))
            for entry, (spread, _), own in zip((a, b), usual, values, strict=True)
        ]
        return abs(mean(values[0]) - mean(values[1])) > student(usual[0][1]) * math.hypot(*errors)
    known = [half for half in (_half(a), _half(b)) if half is not None]
    if known and not paired:  # an entry about which nothing is known is taken to be as uncertain as the other
        return abs(a.value - b.value) > math.hypot(known[0], known[-1])
    return a.value != b.value


def predicted(
    values: Sequence[float], usual: tuple[float, int] | None = None, level: float = LEVEL
) -> tuple[float, float] | None:
    """Where one more seed's value is expected: the prediction interval mean ± t s sqrt(1 + 1 / n), Student's t.

    Args:
        values: of the seeds that are known.
        usual: as in `Entry`; where it is known, s is that spread, or the seeds' own if that is larger, as in `different`; the
            latter with its own degrees of freedom from three seeds on, since a row may vary more than others.

    Returns:
        None for one seed where no usual spread is known.
    """
    own = statistics.stdev(values) if len(values) > 1 else 0.0
    spread, freedom = usual or (own, len(values) - 1)
    if not freedom:
        return None
    half = student(freedom, level) * max(spread, own)
    if own > spread and len(values) >= ENOUGH:
        half = student(len(values) - 1, level) * own
    reach = half * math.sqrt(1 + 1 / len(values))
    return mean(values) - reach, mean(values) + reach


def _half(entry: Entry) -> float | None:
    """Half the width of an entry's 95 % interval: over seeds where three or more tell it, or else over images."""
    if entry.spread is not None and len(entry.by_seed) >= ENOUGH:
        return student(len(entry.by_seed) - 1) * entry.spread / math.sqrt(len(entry.by_seed))
    return (entry.interval[1] - entry.interval[0]) / 2 if entry.interval is not None else None


Images = Sequence[Mapping[int, float]]  # of the entries of a column: their FIDs by seed, which are the same for the same images


def _mark_best(entries: Sequence[Entry], images: Images, sign: int) -> None:
    """Marks the best value of a column and everything that is not different from it; nothing where that is most of it.

    An entry whose images are some of another's, as those of training-free rows are at the training size, is judged as that one.

    Args:
        sign: of the measure.
    """
    present = [(entry, fids) for entry, fids in zip(entries, images, strict=True) if entry.value is not None]
    if not present:
        return
    fullest = [
        max((other for other in present if fids.items() <= other[1].items()), key=lambda other: len(other[1]))[0]
        for _, fids in present
    ]
    top = min(fullest, key=lambda entry: sign * entry.value)
    for (entry, _), known in zip(present, fullest, strict=True):
        entry.best = known is top or not different(known, top)
    apart = {id(known): known.best for known in fullest}  # rows that share images count once
    if len(apart) >= FEW and 2 * sum(apart.values()) > len(apart):
        for entry, _ in present:  # the column separates nobody
            entry.best = False


def _note_usual(entries: Sequence[Entry], images: Images, families: Sequence[str], proportional: bool = False) -> None:
    """Notes on a column's entries how trainings usually spread: the median over families, in which one row may be far off.

    The standard deviation of a few seeds is mostly too small (its median is 0.67 of the true one for two, 0.83 for three), so
    each is divided by that factor. A row that is the same with every seed, as at a bound of the measure, tells no spread.

    Args:
        entries: of one measure in one column.
        images: methods that share images, as training-free ones do at the training size, count once.
        families: what each row was trained as. Rows of one training do not vary independently: they give one spread, their
            median, and its degrees of freedom once.
        proportional: the spread grows with the value, so that it is taken and noted relative to it.
    """
    pairs = zip(images, entries, families, strict=True)
    distinct = {(family, frozenset(fids.items())): entry for fids, entry, family in pairs if entry.spread}
    spreads: dict[str, list[float]] = {}
    freedoms: dict[str, int] = {}
    for (family, key), entry in distinct.items():
        if not any(family == other and key < more for other, more in distinct):
            spread = entry.spread / median_of_spread(len(key) - 1)
            spreads.setdefault(family, []).append(spread / entry.value if proportional else spread)
            freedoms[family] = max(freedoms.get(family, 0), len(key) - 1)
    if sum(freedoms.values()) >= FREEDOM:
        usual = statistics.median(statistics.median(found) for found in spreads.values())
        for entry in entries:
            if entry.value is not None:
                entry.usual = usual * entry.value if proportional else usual, sum(freedoms.values())


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


def build(rules: Protocol, records: Iterable[Record]) -> Table:
    """The table of one protocol. Rows that lack a cell or a seed come last and have no mean."""
    order = {pair: place for place, pair in enumerate(rules.pairs())}
    kept = sorted(
        (record for record in records if record.protocol == rules.name),
        key=lambda record: (record.method, order[record.pair], record.seed),
    )
    scored = {name for record in kept for name in record.scores or ()}
    metrics = [name for name, known in METRICS.items() if known.required or name in scored]
    by_method: dict[str, list[Record]] = {}
    for record in kept:
        by_method.setdefault(record.method, []).append(record)
    table = Table(rules, kept, [], metrics, columns(rules))
    table.rows = [_row(method, members, table.columns, metrics) for method, members in by_method.items()]
    families = [row.trained_as for row in table.rows]
    for metric in metrics:
        for column in table.columns:
            entries = [row.entries[metric, column] for row in table.rows]
            images = [row.entries["fid", column].by_seed for row in table.rows]
            _note_usual(entries, images, families, METRICS[metric].proportional)
            _mark_best(entries, images, METRICS[metric].sign)
    ranks = table.ranks("fid")
    table.rows.sort(key=lambda row: (row.missing, ranks.get(row.method, math.inf), row.method))
    return table
