"""Randomized positions on the sequence: draws, the raster, and what is refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import small
import torch
from scipy import stats
from strategies import build

from benchmark import registry
from benchmark.files import UserError
from benchmark.identity import Training
from benchmark.model.draws import Draws
from benchmark.streams import POSITIONS


def angles(encoding) -> torch.Tensor:
    """The fastest band's angle of every token, [..., T]."""
    return torch.atan2(encoding.rotary[1][..., 0], encoding.rotary[0][..., 0])


def test_randomized_1d_draws():
    method = build("randomized_1d", options={"randomized_1d": {"l_max": 40}})
    drawn = method.positions(24, Draws(0, 1, (0, 300), 300))
    assert drawn.shape == (300, 24)
    assert (drawn.diff(dim=1) > 0).all()
    assert (drawn.min(), drawn.max()) == (0, 39)
    method = build("randomized_1d", options={"randomized_1d": {"l_max": 26, "draw": "batch"}})
    subsets = Counter(tuple(method.positions(24, Draws(0, i, (0, 4), 4)).tolist()) for i in range(3000))
    assert len(subsets) == math.comb(26, 24)
    assert stats.chisquare(list(subsets.values())).pvalue > 0.001
    tables = method.encode((4, 6), draws=Draws(0, 1, (0, 4), 4)).rotary
    assert tables[0].shape == (24, 8)


def test_randomized_1d_runs_along_the_raster():
    method = build("randomized_1d", "16x24", ("16x24", "32x24"))
    assert method.l_max == 48
    position = torch.arange(24).double() * 47 / 23
    torch.testing.assert_close(method.positions(24, None), position)
    expected = torch.atan2(position.sin(), position.cos()).float()
    torch.testing.assert_close(angles(method.encode((4, 6))), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(angles(method.encode((6, 4))), expected, rtol=0, atol=1e-5)
    assert torch.equal(method.positions(48, None), torch.arange(48).double())
    last = method.encode((8, 6)).rotary[1][1, -1].item()
    assert last == pytest.approx(math.sin(100 ** (-14 / 16)), rel=1e-5), "one axis turns the whole head"


def test_randomized_1d_refuses():
    with pytest.raises(UserError, match="8 x 13 has more tokens than l_max = 96"):
        build("randomized_1d").encoding((8, 13))
    with pytest.raises(UserError, match="l_max 20 is smaller than the training grid's 24 tokens"):
        build("randomized_1d", options={"randomized_1d": {"l_max": 20}})
    with pytest.raises(UserError, match=r"unknown randomized_1d draw 'step'.*batch, sample"):
        build("randomized_1d", options={"randomized_1d": {"draw": "step"}})
    fixed = build("randomized_1d", options={"randomized_1d": {"spacing": "random"}})
    assert torch.equal(fixed.positions(24, None), fixed.positions(24, None))
    assert (fixed.positions(24, None).diff() > 0).all()


def test_random_positions_at_test_share_no_numbers_with_training():
    """They come from the stream for positions, and not from that of training's first step."""
    method = build("randomized_1d", options={"randomized_1d": {"spacing": "random"}})
    drawn = Draws(0, 0, (0, 1), 1, "cpu", POSITIONS).subsets(24, method.l_max)[0]
    assert torch.equal(method.positions(24, None), drawn)
    assert not torch.equal(drawn, Draws(0, 0, (0, 1), 1).subsets(24, method.l_max)[0])


def test_trainings_for_other_ranges_are_other_trainings():
    """64x64 beside 64x32 and 32x64: the longest axis is the same, the number of tokens is not."""
    square, bars = (small.protocol({"16x16": tests}, core={"patch": 4}) for tests in (["64x64"], ["64x32", "32x64"]))
    ranges = [registry.build("randomized_1d", rules, "16x16", 0).l_max for rules in (square, bars)]
    assert ranges == [256, 128]
    assert len({Training(rules, "randomized_1d", "16x16", 0).key("data") for rules in (square, bars)}) == 2
