"""NTK by parts against its formula, band by band."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from strategies import GRIDS, PLAIN, by_parts, latent


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_ntk_by_parts(trained, tested):
    method = latent("ntk_by_parts")
    # Rounding hides small changes of a threshold on short grids.
    assert dataclasses.astuple(method.options) == (1.25, 0.75, 16, 2)
    theta = method.theta(trained, tested, None).numpy()
    np.testing.assert_allclose(theta, by_parts(trained, tested), rtol=1e-9)
    assert theta[-1] == pytest.approx(PLAIN[-1] * trained / tested)
    if trained == 512:
        assert theta[0] == 1
