"""What all rotary methods share: axes by themselves, and bands between plain and interpolated ones."""

from __future__ import annotations

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import latent

from benchmark.files import UserError


def test_axes_are_decoupled():
    """Only the stretched axis changes; a temperature follows the larger stretch."""
    for name in ("interpolation", "ntk", "yarn"):
        method, plain = latent(name), latent("extrapolation")
        scale = method.temperature(2.0)
        for grid_hw, same in (((32, 16), slice(16, 32)), ((16, 32), slice(0, 16)), ((8, 32), slice(0, 16))):
            ours, theirs = method.encode(grid_hw).rotary[0], plain.encode(grid_hw).rotary[0]
            torch.testing.assert_close(ours[:, same], scale * theirs[:, same])
            other = slice(16, 32) if same.start == 0 else slice(0, 16)
            assert not torch.allclose(ours[:, other], scale * theirs[:, other], atol=0.01)


@settings(max_examples=30, deadline=None)
@given(trained=st.integers(1, 64), tested=st.integers(1, 256))
def test_no_band_leaves_the_span_between_plain_and_interpolated(trained, tested):
    plain = latent("extrapolation").plain()
    squeezed = plain / max(tested / trained, 1)
    for name in ("interpolation", "ntk", "yarn"):
        theta = latent(name).theta(trained, tested, None)
        assert (theta <= plain * (1 + 1e-12)).all()
        assert (theta >= squeezed * (1 - 1e-12)).all()
        if tested <= trained:
            assert torch.equal(theta, plain)


def test_heads_that_do_not_divide_into_two_axes_of_pairs_are_refused():
    from benchmark import protocol

    with pytest.raises(UserError, match="head width 18 is not divisible by 4"):
        protocol.validate(small.contest(core={"width": 36, "heads": 2}))
