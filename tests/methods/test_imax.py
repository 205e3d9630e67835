"""I-Max against its formula, band by band."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import BASE, GRIDS, D, latent

from benchmark import registry
from benchmark.files import UserError


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_imax(trained, tested):
    theta = latent("imax").theta(trained, tested, None).numpy()
    expected = [max((10 * BASE) ** (-2 * j / D), BASE ** (-2 * j / D) * trained / tested) for j in range(D // 2)]
    np.testing.assert_allclose(theta, expected, rtol=1e-12)
    assert theta[0] == 1


def test_impossible_factor():
    with pytest.raises(UserError, match="positive factor"):
        registry.load("imax").make_options({"factor": 0.0})
