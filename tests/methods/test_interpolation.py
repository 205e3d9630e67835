"""Position interpolation against transformers."""

from __future__ import annotations

import pytest
import torch
from strategies import RATIOS, latent, transformers_frequencies


@pytest.mark.parametrize("head", [64, 72])
@pytest.mark.parametrize(("trained", "tested"), RATIOS)
def test_interpolation_equals_transformers(head, trained, tested):
    ours = latent("interpolation", head).theta(trained, tested, None)
    theirs, factor = transformers_frequencies("linear", head // 2, 10000.0, trained, tested)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)
    assert factor == 1
