"""NTK by parts against its formula, band by band."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from strategies import CORES, GRIDS, by_parts, latent, plain


@pytest.mark.parametrize(("d", "base"), CORES)
@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_ntk_by_parts(trained, tested, d, base):
    method = latent("ntk_by_parts", 2 * d, base)
    # Rounding hides small changes of a threshold on short grids.
    assert dataclasses.astuple(method.options) == (1.25, 0.75, 16, 2)
    theta = method.theta(trained, tested, None).numpy()
    np.testing.assert_allclose(theta, by_parts(trained, tested, d=d, base=base), rtol=1e-9)
    assert theta[-1] == pytest.approx(plain(d, base)[-1] * trained / tested)
    if trained == 512:
        assert theta[0] == 1


def test_at_eight_tokens_the_first_band_stays_and_no_other():
    """The embedded protocols' grid: 1.27 turns, fewer than the 2 up to which a band is stretched."""
    ratios = latent("ntk_by_parts", 32, 100.0).theta(8, 16, None).numpy() / plain(16, 100.0)
    np.testing.assert_allclose(ratios, [1] + [0.5] * 7, rtol=1e-9)
