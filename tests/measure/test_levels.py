"""Where over the noise levels trained weights fail."""

from __future__ import annotations

import pytest
import torch

from benchmark import protocol, registry
from benchmark.measure import levels
from benchmark.model.draws import heldout_generator


def test_a_leap_is_found_where_it_is() -> None:
    at = torch.tensor(levels.levels())
    sound = 0.05 + (1 - at) ** 8 + 0.3 * at**6  # high at both ends, as real ones are
    assert levels.leaps(sound) == []
    broken = sound + torch.where((at > 0.09) & (at < 0.11), 1e4, 0.0)
    broken[-1] = 3.0
    first, last = levels.leaps(broken)
    assert (first.low, first.high) == (pytest.approx(0.092), pytest.approx(0.108))
    assert first.loss == pytest.approx(1e4, rel=1e-3)
    assert (last.low, last.high, last.loss) == (pytest.approx(0.996), pytest.approx(0.996), 3.0)
    broken = sound.clone()
    broken[100:103] = torch.nan
    (band,) = levels.leaps(broken)
    assert (band.low, band.high) == (pytest.approx(101 / 250), pytest.approx(103 / 250))


def test_the_curve_of_a_core_that_answers_zero_is_the_target_itself() -> None:
    """An untrained core predicts zero: at every level the loss is the mean square of noise minus data."""
    method = registry.build("extrapolation", protocol.load("smoke"), "16x16", 0).eval()
    data = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    losses = levels.curve(method, "16x16", data, torch.tensor([0, 1]))
    assert losses.shape == (249,)
    noise = torch.stack([torch.randn(3, 16, 16, generator=heldout_generator(index, 1)) for index in range(2)])
    torch.testing.assert_close(losses, (noise - data).square().mean().expand(249))
