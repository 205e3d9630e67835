"""Resonance against its formula, band by band."""

from __future__ import annotations

import math

import numpy as np
import pytest
from strategies import CORES, GRIDS, by_parts, latent, plain


@pytest.mark.parametrize(("d", "base"), CORES)
@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_resonance(trained, tested, d, base):
    method, thetas = latent("resonance", 2 * d, base), plain(d, base)
    moved = [2 * math.pi * round(r) / trained if (r := trained * theta / (2 * math.pi)) >= 1 else theta for theta in thetas]
    expected = by_parts(trained, tested, d=d, base=base, thetas=np.array(moved))
    np.testing.assert_allclose(method.theta(trained, tested, None), expected, rtol=1e-9)
    np.testing.assert_array_equal(method.theta(trained, trained, None), latent("extrapolation", 2 * d, base).plain())
    assert method.attention_factor(2) == pytest.approx(1.0693, abs=1e-4)
