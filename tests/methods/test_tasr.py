"""Time-aware RoPE against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from strategies import BASE, GRIDS, D, build, latent


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_time_aware_rope_equals_diffusers(trained, tested):
    method, s = latent("tasr"), tested / trained
    for time, factors in (
        (1.0, {"linear_factor": s}),
        (0.71, {"linear_factor": s}),
        (0.7, {"ntk_factor": s}),
        (0.0, {"ntk_factor": s}),
    ):
        angle = get_1d_rotary_pos_embed(D, np.array([1.0]), BASE, freqs_dtype=torch.float64, **factors).angle()[0]
        np.testing.assert_allclose(method.theta(trained, tested, time).numpy(), angle.numpy(), rtol=1e-5)


def test_under_ddpm_it_changes_where_the_flow_would():
    """Level 426 of 1000 has the signal-to-noise ratio of flow time 0.70: (1 - t) / t = sqrt(abar / (1 - abar))."""
    method = build("tasr", objective={"name": "ddpm"}, sample={"solver": "ddim", "steps": 40})
    interpolated = {}
    theta = type(method).theta

    def remember(trained, tested, time):
        found = theta(method, trained, tested, time)
        if tested > trained:
            interpolated[time] = torch.equal(found, method.plain() * trained / tested)
        return found

    method.theta = remember
    method.generate("32x24", 0, [0])
    levels = np.linspace(0, 999, 40).round().astype(int)[::-1]
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = np.sqrt(1 - bar) / (np.sqrt(bar) + np.sqrt(1 - bar))
    np.testing.assert_allclose(list(interpolated), times[levels], rtol=1e-9)
    assert times[426] < 0.7 < times[427]
    assert list(interpolated.values()) == [level > 426 for level in levels], "not from level 700 up"
