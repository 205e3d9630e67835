"""NTK-aware scaling against transformers, and its bands by hand."""

from __future__ import annotations

import pytest
import torch
from strategies import RATIOS, build, latent, transformers_frequencies


@pytest.mark.parametrize("head", [64, 72])
@pytest.mark.parametrize(("trained", "tested"), RATIOS)
def test_ntk_equals_transformers(head, trained, tested):
    """The library's dynamic form at seq_len = tested with factor 1 stretches the base by tested / trained."""
    ours = latent("ntk", head).theta(trained, tested, None)
    theirs, _ = transformers_frequencies("dynamic", head // 2, 10000.0, trained, tested, factor=1.0)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=0)
    plain = latent("extrapolation", head).plain()
    assert ours[0] == plain[0]
    assert (plain[-1] / ours[-1]).item() == pytest.approx(tested / trained, rel=1e-9)


def test_ntk_band_ratios():
    ratios = latent("ntk", 72).theta(16, 32, None) / latent("extrapolation", 72).plain()
    assert ratios[:6].tolist() == pytest.approx([1, 0.96, 0.92, 0.885, 0.85, 0.816], abs=2e-3)


def test_ntk_with_a_single_band():
    assert build("ntk", core={"width": 8, "heads": 2}).theta(4, 8, None).tolist() == [1.0]
