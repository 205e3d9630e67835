"""The papers' figures, and how far an order agrees with theirs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TINY, board_of, protocols, tiny, value_of

from benchmark import files, protocol
from benchmark.board import published, table
from benchmark.files import UserError
from benchmark.results import record


@settings(deadline=None)
@given(*[st.lists(st.integers(0, 4), min_size=6, max_size=6)] * 2)
def test_kendall_is_that_of_scipy(theirs: list[int], ours: list[int]) -> None:
    found = published.kendall(theirs, np.array([ours, theirs], float))
    assert found[1] == pytest.approx(float(len(set(theirs)) > 1))
    if len(set(ours)) > 1 and len(set(theirs)) > 1:
        assert found[0] == pytest.approx(scipy.stats.kendalltau(theirs, ours).statistic)
    else:
        assert found[0] == 0  # no order at all


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_share_of_orders_by_chance_is_that_of_all_permutations(count: int) -> None:
    taus = np.array([scipy.stats.kendalltau(range(count), order).statistic for order in itertools.permutations(range(count))])
    for tau in np.linspace(-1, 1, 21):
        assert published.chance(count, tau) == pytest.approx(np.mean(taus >= tau - 1e-9)), tau


def test_agreement_over_common_methods_with_an_interval(rules: protocol.Protocol) -> None:
    board = board_of(rules, {
        ("ledit", 0): (1, 56, 1), ("yarn", 0): (1, 109, 1), ("rifle", 0): (1, 175, 1), ("ntk", 0): (1, 174, 1),
        ("mine", 0): (1, 1, 1),
    }, resamples=200)  # fmt: skip
    (found,) = published.agreements(board, published.load())
    assert (found.ratio, found.size, found.missing) == ("2x", "512x512", ["sincos"])
    assert (found.methods, found.theirs) == (["ledit", "yarn", "rifle", "ntk"], [34.29, 109, 119.57, 174.68])
    assert found.tau == pytest.approx(4 / 6)
    assert found.interval[0] <= found.tau <= found.interval[1]
    few = board_of(rules, {("ledit", 0): (1, 56, 1), ("yarn", 0): (1, 109, 1)})
    (found,) = published.agreements(few, published.load())
    assert (found.tau, found.interval) == (None, None)
    uneven = {("ledit", 0): (1, 1, 1), ("ledit", 1): (1, 9, 1), ("yarn", 0): (1, 2, 1), ("ntk", 0): (1, 3, 1)}
    (found,) = published.agreements(board_of(rules, uneven), published.load())
    assert (found.seeds, found.ours, found.tau) == ([0], [1, 2, 3], 1)


def test_an_order_is_compared_with_the_switches_off_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocols(tmp_path / "protocols", monkeypatch, shapes_a=TINY, shapes_b=TINY + "switches: {attention_scale: jin}\n")
    for name, count in (("shapes-a", 1), ("shapes-b", 0)):
        tiny(tmp_path / name, protocol.load(name))
        board = table.build(protocol.load(name), record.read_all(tmp_path / name))
        assert len(published.agreements(board, published.load())) == count


def test_the_interval_of_tau_uses_the_spread_of_replicates_only(rules: protocol.Protocol, tmp_path: Path) -> None:
    def agreed(move: float) -> tuple[float, float] | None:
        for method, fid in (("ledit", 20.0), ("yarn", 30.0), ("ntk", 40.0)):
            for pair in rules.pairs():
                value = value_of(rules, method, pair, 0, fid)
                score = value["scores"]["fid"]
                score["replicates"] = [item + (move if method == "yarn" else 0) for item in score["replicates"]]
                record.write(value, tmp_path / "records")
        board = table.build(rules, _unchecked(tmp_path / "records"))
        (found,) = published.agreements(board, published.load())
        return found.interval

    assert agreed(0) == agreed(-25.0) == (1.0, 1.0)  # resampling may move a statistic: that is no change of order


def _unchecked(folder: Path) -> list[record.Record]:
    """Records that the check would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "validate", lambda value, rules: None)
        return record.read_all(folder)


def test_only_protocols_that_claim_to_predict_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocols(tmp_path / "protocols", monkeypatch, other=TINY)
    rules = protocol.load("other")
    board = board_of(rules, {(name, 0): (1, 2, 3) for name in ("ledit", "yarn", "ntk", "sincos")})
    assert published.agreements(board, published.load()) == []


def test_the_figures_are_those_of_the_papers() -> None:
    tables = {item.id: item for item in published.load().tables}
    assert {name: (len(item.rows), item.sizes) for name, item in tables.items()} == {
        "ledit-256": (13, ["384x384", "448x448", "512x512"]),
        "ledit-256-nonsquare": (6, ["512x384", "384x512"]),
        "ledit-512": (7, ["768x768", "896x896", "1024x1024"]),
        "fitv2-ood": (8, ["320x320", "224x448", "160x480"]),
        "ledit-256-at-training-size": (4, ["256x256"]),
        "ledit-256-b2": (4, ["512x512"]),
        "ledit-256-s2": (4, ["512x512"]),
        "flowdcn-various": (6, ["256x256", "320x320", "224x448", "160x480"]),
        "nit-xl-native": (1, tables["nit-xl-native"].sizes),
    }
    assert len(tables["nit-xl-native"].sizes) == 12
    known = {path.stem for path in (files.ROOT / "benchmark" / "protocols").glob("*.yaml")}
    assert {name for item in tables.values() for name in item.here.values()} <= known
    total = math.fsum(
        number or 0 for item in tables.values() for row in item.rows for cell in row.cells.values() for number in cell or []
    )
    assert total == pytest.approx(34186.2)


def test_a_broken_file_of_figures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    good = published.FILE.read_text()
    for old, new, words in (
        ("[114.1, 162.5, 14.91, 0.18, 0.27]", "[114.1, 162.5]", "must hold 5 numbers or null"),
        ('training: "scratch"', 'training: "scratched"', "unknown training"),
        ('yarn: "DiT-VisionYaRN*"', 'yarn: "DiT-YaRN*"', "unknown row"),
        ("leaderboard: imagenet-512", "leaderboard: imagenet-511", "unknown leaderboard"),
        ("    samples: 50000", "    sample: 50000", "is not a file of published tables"),
        ("    table: ledit-256\n", "    table: ledit-255\n", "unknown table"),
    ):
        assert old in good
        path.write_text(good.replace(old, new))
        published.load.cache_clear()
        with pytest.raises(UserError, match=words):
            published.load(path)
    with pytest.raises(UserError, match="does not exist"):
        published.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("noise", [0.01, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_over_seeds_covers_what_it_says(seeds: int, noise: float) -> None:
    """The mean over seeds of a method, whose true mean is 0: the share of trials whose interval holds it.

    The noise over images is part of how seeds spread, here a little of it or all.
    """
    random, trials, covered = np.random.RandomState(seeds), 200, 0
    for _ in range(trials):
        values = random.standard_normal(seeds)
        replicates = {seed: value + noise * random.standard_normal(20) for seed, value in enumerate(values)}
        centred = {seed: found - found.mean() + values[seed] for seed, found in replicates.items()}
        low, high = published.interval(lambda ours: ours[..., 0], [centred])
        covered += low <= 0 <= high
    assert 0.9 < covered / trials < 0.99


def test_the_interval_of_a_measure_whose_seeds_share_images_covers_them_too() -> None:
    """As the denoising loss: here images are all the noise, and seeds alone tell nothing of it."""
    random, trials, covered = np.random.RandomState(0), 200, {True: 0, False: 0}
    for _ in range(trials):
        common, resamples = random.standard_normal(), random.standard_normal(200)
        values = common + 0.1 * random.standard_normal(3)
        replicates = {seed: resamples - resamples.mean() + value for seed, value in enumerate(values)}
        for same in covered:
            low, high = published.interval(lambda ours: ours[..., 0], [replicates], same)
            covered[same] += low <= 0 <= high
    assert 0.9 < covered[True] / trials < 0.99
    assert covered[False] / trials < 0.6
