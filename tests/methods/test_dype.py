"""DyPE in both forms against its formula, its ends, and the noise level that it is given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import CORES, GRIDS, PLAIN, build, by_parts, latent

from benchmark.files import UserError


@pytest.mark.parametrize(("d", "base"), CORES)
@pytest.mark.parametrize(("trained", "tested"), GRIDS)
@pytest.mark.parametrize("time", [1.0, 0.7, 0.2, 0.02])
def test_dype(trained, tested, time, d, base):
    theta = latent("dype", 2 * d, base).theta(trained, tested, time).numpy()
    np.testing.assert_allclose(theta, by_parts(trained, tested, time**2, d, base), rtol=1e-9)
    ntk = latent("dype_ntk", 2 * d, base).theta(trained, tested, time).numpy()
    stretch = (tested / trained) ** (d / (d - 2) * 2 * time**2)
    np.testing.assert_allclose(ntk, (base * stretch) ** (-np.arange(0, d, 2) / d), rtol=1e-9)


def test_dype_ends():
    """Pure noise: by parts as it stands, and twice NTK's exponent; data: plain RoPE, and nothing jumps on the way there."""
    for name in ("dype", "dype_ntk"):
        method = latent(name)
        np.testing.assert_allclose(method.theta(16, 32, 0.0).numpy(), PLAIN, rtol=1e-12)
        np.testing.assert_allclose(method.theta(16, 32, 1e-3).numpy(), PLAIN, rtol=1e-3)
    np.testing.assert_allclose(latent("dype").theta(16, 32, 1.0), latent("ntk_by_parts").theta(16, 32, None), rtol=1e-12)
    np.testing.assert_allclose(latent("dype_ntk").theta(16, 32, math.sqrt(0.5)), latent("ntk").theta(16, 32, None), rtol=1e-9)
    assert latent("dype_ntk").theta(16, 32, 1.0)[-1] == pytest.approx(PLAIN[-1] / 4)
    assert latent("dype").attention_factor(2) == pytest.approx(1.0693, abs=1e-4)
    assert latent("dype_ntk").attention_factor(2) == 1
    with pytest.raises(UserError, match=r"unknown dype form 'yran'; did you mean 'yarn'\? \(choose from: ntk, yarn\)"):
        build("dype", options={"dype": {"form": "yran"}})


@settings(max_examples=30, deadline=None)
@given(time=st.floats(0, 1), trained=st.integers(2, 64), stretch=st.floats(1, 8))
@example(time=3e-160, trained=2, stretch=2.0)  # whose square is no normal number
def test_dype_stretches_more_near_noise(time, trained, stretch):
    tested = round(stretch * trained)
    for name in ("dype", "dype_ntk"):
        method = latent(name)
        early, late = method.theta(trained, tested, 1.0), method.theta(trained, tested, time)
        assert (early <= late * (1 + 1e-9)).all()
        assert (late.numpy() <= PLAIN * (1 + 1e-9)).all()


def test_timed_methods_make_an_encoding_for_every_level():
    method = build("dype")
    one, two = method.encoding((8, 12), 0.9), method.encoding((8, 12), 0.2)
    assert not torch.equal(one.rotary[0], two.rotary[0])
    assert torch.equal(method.encoding((8, 12), 0.9).rotary[0], one.rotary[0])
    levels = []
    theta = type(method).theta
    method.theta = lambda trained, tested, time: levels.append(time) or theta(method, trained, tested, time)
    method.generate("32x48", 0, [0])
    assert levels == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3], abs=1e-6)
