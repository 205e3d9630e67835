"""RPE-2D: its draws and their statistics, test positions, conditioning and augmentation."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import small
import torch
from scipy import stats
from strategies import build

from benchmark import registry
from benchmark.files import UserError
from benchmark.model.draws import Draws


def draws(step: int, rows: int) -> Draws:
    return Draws(0, step, (0, rows), rows)


def test_rpe_draws_are_sorted_distinct_and_in_range():
    method = build("rpe2d", options={"rpe2d": {"h_max": 20}})
    for axis, count in enumerate((4, 6)):
        drawn = method.positions(count, axis, draws(1, 500))
        assert drawn.shape == (500, count)
        assert (drawn.diff(dim=1) > 0).all()
        assert drawn.min() == 0
        assert drawn.max() == 19


def test_rpe_draws_every_subset_equally_often():
    drawn = draws(3, 6000).subsets(3, 6)
    counts = Counter(map(tuple, drawn.tolist()))
    subsets = list(itertools.combinations(range(6), 3))
    assert set(counts) == set(subsets)
    assert stats.chisquare([counts[subset] for subset in subsets]).pvalue > 0.001


def test_rpe_statistics_of_the_range():
    """Expected gap, P(gap = 1) and span of 16 sorted draws out of 32, 48, 64."""
    for h_max, gap, one, span in ((32, 1.94, 0.50, 29.1), (48, 2.89, 0.34, 43.3), (64, 3.82, 0.25, 57.3)):
        gaps = draws(1, 4000).subsets(16, h_max).diff(dim=1).double()
        assert gaps.mean().item() == pytest.approx(gap, rel=0.02)
        assert (gaps == 1).double().mean().item() == pytest.approx(one, abs=0.01)
        assert gaps.sum(1).mean().item() == pytest.approx(span, rel=0.01)


def test_rpe_axes_are_independent_and_samples_differ():
    method = build("rpe2d", "16x16", ("32x32",))
    tables = method.encode((4, 4), draws=draws(2, 3000)).rotary
    assert tables[0].shape == (3000, 1, 16, 8)
    angle = torch.atan2(tables[1][:, 0, :, [0, 4]], tables[0][:, 0, :, [0, 4]])  # the fastest band: position modulo 2 pi
    rows, columns = (angle[:, t, i] for t, i in ((4, 0), (1, 1)))  # second row, second column
    seen = stats.contingency.crosstab(rows.numpy().round(3), columns.numpy().round(3)).count
    assert stats.chi2_contingency(seen[np.ix_(seen.sum(1) > 200, seen.sum(0) > 200)]).pvalue > 0.001
    assert len(set(rows.tolist())) > 3


def test_rpe_test_positions_span_the_trained_range():
    method = build("rpe2d", "16x24", ("16x24", "64x64"))
    assert method.h_max == 16
    for count in (2, 4, 6, 11, 16):
        positions = method.positions(count, 0, None)
        torch.testing.assert_close(positions, torch.linspace(0, 15, count, dtype=torch.float64))
    assert method.positions(1, 0, None).tolist() == [7.5]
    assert torch.equal(method.positions(16, 0, None), torch.arange(16).double()), "the largest grid takes every position"


def test_rpe_random_spacing_is_a_fixed_subset():
    method = build("rpe2d", options={"rpe2d": {"spacing": "random"}})
    rows, columns = method.positions(6, 0, None), method.positions(6, 1, None)
    assert torch.equal(rows, method.positions(6, 0, None))
    assert not torch.equal(rows, columns)
    assert (rows.diff() > 0).all()


def test_rpe_random_spacing_is_another_for_every_seed():
    rules = small.protocol()
    one, two = (registry.load("rpe2d")(rules, "16x24", seed, {"spacing": "random"}) for seed in (0, 1))
    assert not torch.equal(one.positions(6, 0, None), two.positions(6, 0, None))


def test_rpe_refuses_what_it_has_not_seen():
    method = build("rpe2d")
    with pytest.raises(UserError, match="13 x 4 tokens has more than h_max = 12"):
        method.encoding((13, 4))
    with pytest.raises(UserError, match="h_max 5 is smaller than the training grid"):
        build("rpe2d", options={"rpe2d": {"h_max": 5}})
    choices = r"\(choose from: even, expected, random\)"
    with pytest.raises(UserError, match=rf"unknown rpe2d spacing 'evn'; did you mean 'even'\? {choices}"):
        build("rpe2d", options={"rpe2d": {"spacing": "evn"}})


def test_rpe_micro_conditioning_starts_silent_and_sees_all_six_numbers():
    method = build("rpe2d")
    crop = torch.tensor([[20.0, 30, 2, 3, 16, 24]])
    assert method.conditioner(crop).eq(0).all()
    small.fill(method.conditioner)
    first = method.conditioner(crop)
    assert first.shape == (1, 32)
    for i in range(6):
        other = crop.clone()
        other[0, i] += 1
        assert not torch.allclose(method.conditioner(other), first, atol=1e-4)


def test_rpe_augmentation_is_an_option():
    assert build("rpe2d").augmentation == ("random_resize_crop", {"largest": 1.5, "uncropped": 0.5})
    plain = build("rpe2d", options={"rpe2d": {"resize": 0.0, "micro_conditioning": False}})
    assert plain.augmentation == ("center_crop", {})
    assert plain.conditioner is None


def test_rpe_expected_spacing_is_the_mean_of_training():
    method = build("rpe2d", options={"rpe2d": {"h_max": 20, "spacing": "expected"}})
    for count in (1, 4, 7):
        positions = method.positions(count, 0, None)
        drawn = method.positions(count, 0, draws(5, 20_000)).double()
        error = drawn.std(dim=0) / 20_000**0.5
        assert ((drawn.mean(dim=0) - positions).abs() < 5 * error).all()
        torch.testing.assert_close(positions[0] + positions[-1], torch.tensor(19.0, dtype=torch.float64))
    torch.testing.assert_close(
        method.positions(20, 0, None), torch.arange(20).double(), msg="the largest grid takes every position"
    )
    whole = [sum(subset) for subset in zip(*itertools.combinations(range(6), 3), strict=True)]
    method = build("rpe2d", "16x16", ("16x24",), options={"rpe2d": {"h_max": 6, "spacing": "expected"}})
    torch.testing.assert_close(method.positions(3, 0, None), torch.tensor(whole).double() / math.comb(6, 3))


def test_rpe_relative_conditioning_says_no_crop_alike_at_every_size():
    method = build("rpe2d")
    small.fill(method.conditioner)
    whole = torch.tensor([[h, w, 0, 0, h, w] for h, w in ((16.0, 24), (32, 48), (24, 20), (4, 4))])
    embedded = method.conditioner(whole)
    assert torch.equal(embedded, embedded[:1].expand_as(embedded))
    crops = torch.tensor([[20.0, 30, 2, 3, 16, 24]])
    torch.testing.assert_close(method.conditioner(crops), method.conditioner(2 * crops))
    for place in range(4):
        assert not torch.allclose(method.conditioner(crops), method.conditioner(crops + torch.eye(6)[place]))
    pixels = build("rpe2d", options={"rpe2d": {"conditioning": "pixels"}})
    small.fill(pixels.conditioner)
    assert not torch.allclose(pixels.conditioner(whole[:1]), pixels.conditioner(whole[1:2]))
