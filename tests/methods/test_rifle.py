"""RIFLEx and RDFC slow one band and leave the others alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from strategies import BASE, GRIDS, D, latent

from benchmark import registry
from benchmark.files import UserError


@pytest.mark.parametrize(("name", "share"), [("rifle", 0.9), ("rdfc", 1.0), ("rdfc_released", 0.85)])
@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_one_band_is_slowed(name, share, trained, tested):
    ours = latent(name).theta(trained, tested, None).numpy()
    k = min(range(D // 2), key=lambda j: abs(2 * math.pi * BASE ** (2 * j / D) - trained))
    assert ours[k] * tested / (2 * math.pi) == pytest.approx(min(share, tested * BASE ** (-2 * k / D) / (2 * math.pi)))
    np.testing.assert_array_equal(np.delete(ours, k), np.delete(latent("extrapolation").plain().numpy(), k))
    if trained == 16:
        assert k == 2, "periods are 6.3, 11.2, 19.9, 35.3 ..."


def test_the_released_band_is_number_nine_of_flux():
    """28 bands an axis at base 10000, 2048 pixels or 128 tokens in training: the text's rule finds it."""
    periods = 2 * np.pi * 10000.0 ** (np.arange(28) / 28)
    options = registry.load("rdfc_released").Options()
    assert np.abs(periods - options.period * 128).argmin() == 9
    assert (options.share, options.band) == (0.85, -1)


@pytest.mark.parametrize(("name", "share"), [("rifle", 0.9), ("rdfc", 1.0), ("rdfc_released", 0.85)])
def test_no_band_becomes_faster(name, share):
    """Eq. 8 is an inequality: a band whose period is longer than the test grid needs stays as it is."""
    method, plain = latent(name), latent("extrapolation").plain()
    slow = latent(name, options={name: {"band": D // 2 - 1}}).theta(16, 20, None)
    assert (slow == plain).all()
    for trained, tested in [(16, 17), (12, 14), (8, 9), (16, 64), (5, 6)]:
        assert (method.theta(trained, tested, None) <= plain).all()
        turns = method.theta(trained, tested, None) * tested / (2 * math.pi)
        k = int((2 * math.pi / plain - trained).abs().argmin())
        assert turns[k] <= share + 1e-12


def test_a_fixed_band():
    method = latent("rdfc", options={"rdfc": {"band": 1, "share": 0.85}})
    theta, plain = method.theta(16, 32, None), latent("extrapolation").plain()
    assert theta[1].item() * 32 / (2 * math.pi) == pytest.approx(0.85)
    assert (theta != plain).sum() == 1
    for band in (16, -2):
        with pytest.raises(UserError, match=rf"RIFLEx: band {band} is none of the 16 bands"):
            latent("rifle", options={"rifle": {"band": band}})
