"""From records to rows: means, spreads, what is best and what is not different, against NumPy and SciPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SMALL, board_of, entry, protocols, value_of

from benchmark import protocol
from benchmark.board import table
from benchmark.board.grid import Cell, number, shown
from benchmark.results import record


def test_a_row_that_misses_a_cell_or_a_seed_has_no_mean_and_comes_last(rules: protocol.Protocol) -> None:
    nan = math.nan
    board = board_of(rules, {
        ("whole", 0): (90, 80, 70),
        ("hole", 0): (1, 1, nan),
        ("failed", 0): (1, 1, None), ("start", 0): (None, 1, 1),
        ("seeds", 0): (1, 1, 1), ("seeds", 1): (1, 1, nan),
    })  # fmt: skip
    assert [row.method for row in board.rows] == ["whole", "failed", "hole", "seeds", "start"]
    assert [row.missing for row in board.rows] == [0, 1, 1, 1, 1]
    assert [row.entries["fid", board.columns[3]].value for row in board.rows] == [75, None, None, None, None]
    assert [row.marks for row in board.rows] == ["¹", "‡¹", "‡¹", "‡", "‡¹"]
    assert shown(entry(board, "failed", 2), 1) == Cell("failed")
    assert shown(entry(board, "hole", 2), 1) == Cell("–")


def test_means_never_mix_the_training_size_with_what_is_beyond_or_below(tmp_path: Path, monkeypatch) -> None:
    protocols(tmp_path / "protocols", monkeypatch, small=SMALL)
    rules = protocol.load("small")
    groups = [column.group for column in table.columns(rules)]
    assert groups == ["below", "at", "beyond", "beyond", "beyond", "beyond"]  # the last is the one mean
    board = board_of(rules, {("a", 0): (1000, 1, 10, 20, 60)})
    assert board.columns[-1] == table.Column("beyond")
    assert entry(board, "a", 5).value == 30
    assert board.headline == board.columns[-1]
    two = SMALL.replace("cells:", "cells:\n  32x32: [32x32, 64x64]")
    protocols(tmp_path / "protocols", monkeypatch, two=two)
    names = [column.group for column in table.columns(protocol.load("two")) if column.is_mean]
    assert names == ["at", "beyond"]


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ("16x16", "16x16", "at"),
        ("16x16", "8x8", "below"),
        ("16x16", "8x16", "below"),
        ("16x16", "8x32", "beyond"),
        ("16x32", "32x16", "beyond"),
        ("16x16", "17x16", "beyond"),
    ],
)
def test_groups(train: str, test: str, expected: str) -> None:
    assert table.group(train, test) == expected


def test_the_square_size_nearest_to_twice_the_training_size_stands_for_all_beyond_it() -> None:
    """Of two that are as near, the smaller one."""
    columns = [table.Column("beyond", "16x16", size) for size in ("64x64", "24x24", "32x32", "32x48")]
    assert table.far(columns, "16x16").test == "32x32"
    columns = [table.Column("beyond", "16x16", size) for size in ("40x40", "24x24")]
    assert table.far(columns, "16x16").test == "24x24"


def test_the_mean_of_a_row_has_the_means_of_its_resamples(rules: protocol.Protocol) -> None:
    board = board_of(rules, {("a", 0): (10, 20, 40)}, resamples=200)
    means = np.mean([entry(board, "a", place).replicates[0] for place in (1, 2)], axis=0)
    found = entry(board, "a", 3)
    np.testing.assert_allclose(found.replicates[0], means)
    assert found.interval == pytest.approx(np.quantile(means - means.mean() + 30, [0.025, 0.975]))


def test_mean_and_spread_over_seeds_are_those_of_numpy(rules: protocol.Protocol) -> None:
    values = np.array([[10.0, 20, 40], [12, 26, 41], [17, 29, 45]])
    board = board_of(rules, {("a", seed): tuple(row) for seed, row in enumerate(values)})
    for place in range(3):
        assert entry(board, "a", place).value == pytest.approx(values[:, place].mean())
        assert entry(board, "a", place).spread == pytest.approx(values[:, place].std(ddof=1))
    assert entry(board, "a", 3).value == pytest.approx(values[:, 1:].mean())
    assert entry(board, "a", 3).spread == pytest.approx(values[:, 1:].mean(axis=1).std(ddof=1))


def test_best_is_everything_that_is_not_different_from_it(rules: protocol.Protocol) -> None:
    board = board_of(rules, {("a", 0): (20, 20, 20), ("same", 0): (20, 20, 20), ("worse", 0): (30, 30, 30)})
    assert [entry(board, name, 0).best for name in ("a", "same", "worse")] == [True, True, False]
    assert [entry(board, name, 0, "is").best for name in ("a", "same", "worse")] == [True, True, False]
    # Where every seed has its say: 20, 26 against 22, 24 cannot be told apart, 20, 20.1, 20.2 against 25, 25.1, 25.2 can.
    board = board_of(rules, {
        ("a", 0): (20,) * 3, ("a", 1): (26,) * 3, ("b", 0): (22,) * 3, ("b", 1): (24.5,) * 3,
        ("c", 0): (60,) * 3, ("c", 1): (61,) * 3, ("c", 2): (62,) * 3,
    })  # fmt: skip
    assert [entry(board, name, 1).best for name in "abc"] == [True, True, False]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((20, 20.5, 21, 40, 60), 0),  # three of five cannot be told apart
        ((20, 20.5, 30, 40, 60), 2),
        ((20, 20.5, 21, 40), 3),  # a column of a few rows may be
        ((20, 20, 20, 20, 30, 40, 50, 60), 4),  # the same images count once
    ],
)
def test_nothing_is_best_where_that_is_most_of_a_column(
    values: tuple[float, ...], expected: int, rules: protocol.Protocol
) -> None:
    seeds = {(f"m{place}", seed): (value + seed,) * 3 for place, value in enumerate(values) for seed in range(3)}
    board = board_of(rules, seeds)
    assert sum(entry(board, row.method, 1).best for row in board.rows) == expected


def test_replicates_of_images_decide_between_single_seeds() -> None:
    noise = np.random.RandomState(0).standard_normal(200)
    other = np.random.RandomState(1).standard_normal(200)

    def one(value: float, replicates: np.ndarray) -> table.Entry:
        return table.Entry(value, by_seed={0: value}, replicates={0: replicates})

    assert table.different(one(10, 10 + noise), one(10.5, 10.5 + noise + 0.1 * other))  # paired: the noise is shared
    assert not table.different(one(10, 10 + noise), one(10.5, 10.5 + other))  # alone, the intervals are too wide


def test_a_few_seeds_are_compared_by_the_usual_spread_of_the_column(rules: protocol.Protocol) -> None:
    """Three rows of two seeds know it: spreads of 0.1, 1 and 9 times sqrt(2), so a median of sqrt(2) with three degrees.

    The median of a standard deviation with one degree of freedom is 0.674 of the true one.
    """
    several = {("calm", 0): 50.0, ("calm", 1): 50.2, ("a", 0): 60.0, ("a", 1): 62.0, ("wild", 0): 70.0, ("wild", 1): 88.0}
    usual = math.sqrt(2) / math.sqrt(scipy.stats.chi2.median(1))
    reach = 3.182 * usual * math.sqrt(2)  # one common seed: two trainings, each with the usual spread

    def best(near: float, rows: dict[tuple[str, int], float]) -> list[bool]:
        found = {("first", 0): 20.0, ("near", 0): near} | rows
        board = board_of(rules, {key: (value,) * 3 for key, value in found.items()})
        return [entry(board, name, 1).best for name in ("first", "near")]

    assert best(20 + reach - 0.01, several) == [True, True]
    assert best(20 + reach + 0.01, several) == [True, False]
    assert best(23.0, {key: value for key, value in several.items() if key[0] == "a"}) == [True, False]  # images alone
    # Two common seeds say little of their own difference. The median is still sqrt(2), with four degrees: `first` tells none.
    for shift, same in ((-0.01, True), (0.01, False)):
        middle = 20 + 2.776 * usual + shift
        both = several | {("first", 1): 20.0, ("near", 1): middle + 1}
        assert best(middle - 1, both) == [True, same]


def test_some_seeds_of_the_same_images_are_judged_by_all_of_them(rules: protocol.Protocol) -> None:
    """As of training-free rows at the training size: their one seed is one of their base's three."""
    rows = {("first", 0): 20.0, ("first", 1): 20.3, ("first", 2): 19.7, ("base", 0): 21.0, ("base", 1): 21.3, ("base", 2): 20.7}
    board = board_of(rules, {key: (value,) * 3 for key, value in (rows | {("same", 0): 21.0, ("other", 0): 21.01}).items()})
    for place in range(4):  # the mean too
        best = {row.method: entry(board, row.method, place).best for row in board.rows}
        assert best == {"first": True, "base": False, "same": False, "other": True}
    rows = {name: (value, value + 0.1, value - 0.1) for name, value in (("first", 20.0), ("c", 30.0), ("d", 31.0))}
    found = {(name, seed): value for name, values in rows.items() for seed, value in enumerate(values)}
    found |= {("base", 0): 21.5, ("base", 1): 21.5, ("base", 2): 17.9, ("same", 2): 17.9}
    board = board_of(rules, {key: (value,) * 3 for key, value in found.items()})
    assert entry(board, "first", 1).best, "the best one is looked for among rows with all of their seeds"


def test_the_same_value_of_other_images_is_no_reason_to_judge_rows_as_one(
    rules: protocol.Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precision is a share, and often 0."""
    monkeypatch.setattr(table, "FEW", 99)
    spreads = {name: [0.1, 0.3, 0.5] for name in ("d", "e", "f")}
    shares = {"best": [0.59, 0.6, 0.61], "low": [0.0, 0.05, 0.1], "other": [0.0]} | spreads

    def precision(fid_of_other: float) -> dict[str, bool]:
        found = []
        for place, (method, values) in enumerate(shares.items()):
            for seed, share in enumerate(values):
                fid = fid_of_other if method == "other" else 10.0 + 10 * place + seed
                value = {"value": share}
                found += [
                    record.from_value(value_of(rules, method, pair, seed, fid, precision=value), rules) for pair in rules.pairs()
                ]
        board = table.build(rules, found)
        return {row.method: row.entries["precision", board.columns[0]].best for row in board.rows}

    assert [precision(99.0)[name] for name in ("best", "low", "other")] == [True, False, True]
    assert [precision(20.0)[name] for name in ("best", "low", "other")] == [True, False, False]  # the images of `low`


def test_without_replicates_intervals_decide_and_without_intervals_every_difference_counts() -> None:
    def entry(value: float, ends: tuple[float, float] | None = None) -> table.Entry:
        return table.Entry(value, interval=ends, by_seed={0: value})

    assert not table.different(entry(10, (9, 11)), entry(11.4, (10.4, 12.4)))  # sqrt(2) apart would be
    assert table.different(entry(10, (9, 11)), entry(11.5, (10.5, 12.5)))
    assert not table.different(entry(10, (9, 11)), entry(11.4))  # nothing known of one: as uncertain as the other
    assert table.different(entry(10), entry(10.1))
    three = table.Entry(10, spread=1.0, by_seed={0: 9.0, 1: 10.0, 2: 11.0})
    reach = math.hypot(4.303 / math.sqrt(3), 0.5)
    assert not table.different(three, entry(10 + reach - 0.01, (10 + reach - 0.51, 10 + reach + 0.49)))
    assert table.different(three, entry(10 + reach + 0.01, (10 + reach - 0.49, 10 + reach + 0.51)))


def test_means_of_one_seed_are_as_uncertain_as_their_sizes_allow() -> None:
    """sFID has no resamples to pair the sizes by; the means of the intervals' ends hold whatever the sizes have in common."""

    def mean_of(*values: float, half: float) -> table.Entry:
        return table._mean_entry([table.Entry(one, interval=(one - half, one + half), by_seed={0: one}) for one in values], [0])

    one, other = mean_of(10.4, 13.4, half=0.7), mean_of(10.5, 13.5, half=0.7)
    assert one.interval == pytest.approx((11.2, 12.6))
    assert not table.different(one, other)
    assert table.different(mean_of(10.4, 13.4, half=0.01), mean_of(10.5, 13.5, half=0.01))


def test_student_is_that_of_scipy() -> None:
    for freedom in (1, 2, 5, 30, 200):
        assert table.student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom))


def test_one_or_two_seeds_are_never_judged_by_their_own_spread(rules: protocol.Protocol) -> None:
    """Two seeds that differ much would have Student's t call everything alike: 12.7 times their spread."""

    def board(**more: dict) -> table.Table:
        rows = {("top", 0): 0.31, ("top", 1): 0.30, ("none", 0): 0.0, ("none", 1): 0.01, ("near", 0): 0.29}
        found = []
        for (method, seed), share in (rows | more.get("more", {})).items():
            for pair in rules.pairs():
                value = value_of(rules, method, pair, seed, 20.0 - 0.01 * len(found))
                value["scores"]["precision"] = {"value": share}
                found.append(record.from_value(value, rules))
        return table.build(rules, found)

    few = board()  # spreads of 0.007 twice, with two degrees of freedom: a single seed at 0.29 is not different, 0.005 is
    assert [row.method for row in few.rows if row.entries["precision", few.columns[0]].best] == ["near", "top"]
    several = {("calm", seed): 0.1 + 0.02 * seed for seed in range(3)}
    known = board(more=several)  # spreads of 0.007, 0.007 and 0.02: 0.007, with four degrees
    assert [row.method for row in known.rows if row.entries["precision", known.columns[0]].best] == ["near", "top"]


def test_three_seeds_of_a_row_that_varies_much_are_judged_by_the_usual_spread(rules: protocol.Protocol) -> None:
    """Its differences from the best are 0.05, 0.29 and 0.20: Student's t with two degrees would call 0.13 and 0.31 alike."""
    rows = {"top": (0.30, 0.31, 0.32), "near": (0.29, 0.31, 0.32), "wild": (0.25, 0.02, 0.12), "calm": (0.1, 0.12, 0.14)}
    found = []
    for method, shares in rows.items():
        for seed, share in enumerate(shares):
            for pair in rules.pairs():
                value = value_of(rules, method, pair, seed, 20.0 - 0.01 * len(found))
                value["scores"]["precision"] = {"value": share}
                found.append(record.from_value(value, rules))
    board = table.build(rules, found)
    assert [row.method for row in board.rows if row.entries["precision", board.columns[0]].best] == ["near", "top"]
    differences = np.subtract(rows["top"], rows["wild"])
    assert scipy.stats.ttest_1samp(differences, 0).pvalue > 0.05


FAMILIES = ("rope",) * 5 + ("sincos", "rpe2d", "ledit", "nope")


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_rows_are_called_different_in_one_of_twenty_cases(seeds: int) -> None:
    """Nine rows whose trainings all vary alike, five of them of one checkpoint, as training-free methods at the training size."""
    random, columns, wrong = np.random.RandomState(seeds), 400, 0
    for _ in range(columns):
        values = np.concatenate([np.repeat(random.standard_normal((1, seeds)), 5, 0), random.standard_normal((4, seeds))])
        entries = [table.Entry(row.mean(), row.std(ddof=1), by_seed=dict(enumerate(row.tolist()))) for row in values]
        table._note_usual(entries, [item.by_seed for item in entries], FAMILIES)
        wrong += table.different(entries[-1], entries[-2])
    assert 0.005 < wrong / columns < 0.08


def entries_of(rows: list[tuple[float, ...]]) -> list[table.Entry]:
    return [table.Entry(float(np.mean(row)), float(np.std(row, ddof=1)), by_seed=dict(enumerate(row))) for row in rows]


def test_rows_of_one_training_tell_one_spread_and_its_degrees_of_freedom_once() -> None:
    """Three rows of one checkpoint spread by 1, two of two others by 4: the median over families is 4, with six degrees."""
    entries = entries_of([(10, 11, 12), (20, 21, 22), (30, 31, 32), (40, 44, 48), (50, 54, 58)])
    images = [item.by_seed for item in entries]
    table._note_usual(entries, images, ("rope", "rope", "rope", "sincos", "ledit"))
    spread, freedom = entries[0].usual
    assert (spread, freedom) == (pytest.approx(4 / math.sqrt(scipy.stats.chi2.median(2) / 2)), 6)
    table._note_usual(entries, images, range(5))
    assert entries[0].usual == (pytest.approx(1 / math.sqrt(scipy.stats.chi2.median(2) / 2)), 10)


def test_a_spread_in_proportion_to_the_value_is_small_where_the_value_is() -> None:
    """Three rows vary by a tenth of their values; 1 and 1.3 differ, although rows that fail vary by much more than that."""
    rows = [(0.9, 1.0, 1.1), (1.2, 1.3, 1.4), (90.0, 100.0, 110.0), (45.0, 50.0, 55.0)]
    for proportional in (False, True):
        entries = entries_of(rows)
        table._note_usual(entries, [item.by_seed for item in entries], range(4), proportional)
        assert table.different(*entries[:2]) == proportional
    assert entries[2].usual[0] == pytest.approx(100 * entries[0].usual[0])


def test_rows_at_a_bound_tell_no_spread() -> None:
    """Precision of 0 with every seed: 0.02 and 0.03 would differ."""
    entries = entries_of([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.01, 0.02, 0.03), (0.02, 0.03, 0.04)])
    table._note_usual(
        entries, [{seed: value + place for seed, value in item.by_seed.items()} for place, item in enumerate(entries)], range(5)
    )
    assert entries[0].usual == (pytest.approx(0.01 / math.sqrt(scipy.stats.chi2.median(2) / 2)), 4)
    assert not table.different(*entries[3:])


def test_rows_that_vary_more_than_usual_are_judged_by_their_own_spread() -> None:
    """Two rows with spreads of 5 and 9 among seven with 1, three seeds each and all alike: by the usual one 76 % would differ.

    It is not 5 %, for their own spreads have two degrees of freedom each; Student's t with so few finds hardly any difference.
    """
    random, columns, wrong = np.random.RandomState(0), 400, 0
    for _ in range(columns):
        values = random.standard_normal((9, 3)) * np.array([5, 9, 1, 1, 1, 1, 1, 1, 1])[:, None]
        entries = [table.Entry(row.mean(), row.std(ddof=1), by_seed=dict(enumerate(row.tolist()))) for row in values]
        table._note_usual(entries, [item.by_seed for item in entries], range(9))
        wrong += table.different(entries[0], entries[1])
    assert wrong / columns < 0.2


def test_rows_whose_common_seeds_have_the_other_order_are_not_different() -> None:
    """By its mean the first is the larger one; over the seeds of both it is the smaller one."""

    def one(*values: float) -> table.Entry:
        by_seed = dict(enumerate(values))
        images = {seed: value + 0.1 * np.random.RandomState(seed).standard_normal(200) for seed, value in by_seed.items()}
        return table.Entry(float(np.mean(values)), by_seed=by_seed, replicates=images)

    long, short = one(10.0, 10.2, 30.0), one(12.0, 12.2)
    assert long.value > short.value
    assert not table.different(long, short)
    assert not table.different(short, long)


def test_rows_without_a_common_seed_are_judged_by_the_spread_of_seeds() -> None:
    """Five seeds each, none in common, alike but for chance."""
    random, wrong = np.random.RandomState(0), 0
    for _ in range(200):
        entries = []
        for first in (0, 5, 0, 5):
            row = random.standard_normal(5)
            by_seed = {first + number: value for number, value in enumerate(row.tolist())}
            images = {seed: value + 0.01 * random.standard_normal(50) for seed, value in by_seed.items()}
            entries.append(table.Entry(row.mean(), row.std(ddof=1), by_seed=by_seed, replicates=images))
        table._note_usual(entries, [item.by_seed for item in entries], range(4))
        wrong += table.different(entries[0], entries[1])
    assert wrong / 200 < 0.1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), min_size=3, max_size=9))
def test_several_seeds_are_decided_by_the_paired_t_test_of_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = ({seed: float(pair[side]) for seed, pair in enumerate(pairs)} for side in (0, 1))
    entries = [table.Entry(float(np.mean(list(item.values()))), by_seed=item) for item in (a, b)]
    differences = np.subtract(list(a.values()), list(b.values()))
    if np.ptp(differences) == 0:
        expected = bool(differences[0])
    else:
        pvalue = scipy.stats.ttest_rel(list(a.values()), list(b.values())).pvalue
        if abs(pvalue - 0.05) < 1e-9:
            return
        expected = pvalue < 0.05
    assert table.different(*entries) == expected


def test_a_zero_has_no_minus() -> None:
    assert number(-0.0001, 3) == number(0.0001, 3) == "0.000"
    assert number(-0.04, 1, sign=True) == number(0.0, 1, sign=True) == "0.0"
    assert (number(-0.06, 1, sign=True), number(12.34, 1, sign=True), number(-10.0, 0)) == ("-0.1", "+12.3", "-10")
    assert shown(table.Entry(0.002, interval=(-0.0001, 0.006), by_seed={0: 0.002}), 3).detail == "0.000 to 0.006"


def test_ranks_are_of_complete_rows_by_each_measure(rules: protocol.Protocol) -> None:
    board = board_of(rules, {("a", 0): (1, 2, 3), ("b", 0): (1, 1, 1), ("c", 0): (1, 1, None)})
    assert board.ranks("fid") == {"b": 1, "a": 2}
    assert board.ranks("is") == {"b": 1, "a": 2}


def test_one_cell_of_another_kind_marks_its_row(rules: protocol.Protocol) -> None:
    def marks(**change: Any) -> str:
        values = [value_of(rules, "yarn", pair, 0, 20.0) for pair in rules.pairs()]
        for section, fields in change.items():
            values[0][section].update(fields)
        return table.build(rules, [record.from_value(value, rules) for value in values]).rows[0].marks

    assert marks() == "¹"
    assert marks(revisions={"train": 7}) == "†¹"
    assert marks(method={"options": {"factor": 3.0}}) == "§¹"
