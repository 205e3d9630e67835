"""Resonance against its formula, band by band."""

from __future__ import annotations

import math

import numpy as np
import pytest
from strategies import GRIDS, PLAIN, by_parts, latent


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_resonance(trained, tested):
    method = latent("resonance")
    moved = [2 * math.pi * round(r) / trained if (r := trained * theta / (2 * math.pi)) >= 1 else theta for theta in PLAIN]
    np.testing.assert_allclose(method.theta(trained, tested, None), by_parts(trained, tested, plain=np.array(moved)), rtol=1e-9)
    assert moved[0] * trained / (2 * math.pi) == pytest.approx(round(trained / (2 * math.pi)))
    np.testing.assert_array_equal(method.theta(trained, trained, None), latent("extrapolation").plain())
    assert method.temperature(2) == pytest.approx(1.0693, abs=1e-4)
