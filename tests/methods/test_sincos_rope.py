"""Sin-cos and RoPE together: each part is its own row's, on a rectangle and beyond the training grid, and both count."""

from __future__ import annotations

import math

import pytest
import small
import torch
from strategies import build


@pytest.mark.parametrize("grid_hw", [(4, 6), (8, 3)])
def test_both_parts(grid_hw):
    ours = build("sincos_rope").encode(grid_hw)
    assert torch.equal(ours.add, build("sincos").encode(grid_hw).add)
    for mine, theirs in zip(ours.rotary, build("extrapolation").encode(grid_hw).rotary, strict=True):
        assert torch.equal(mine, theirs)


def test_by_hand():
    """Token (1, 2) of 2 x 3: column first in the table (width 32: eight frequencies), row first in the turns (base 100)."""
    encoding = build("sincos_rope").encode((2, 3))
    assert encoding.add[5, 0].item() == pytest.approx(math.sin(2), abs=1e-6)
    assert encoding.add[5, 16].item() == pytest.approx(math.sin(1), abs=1e-6)
    assert encoding.add[5, 15].item() == pytest.approx(math.cos(2 * 10000 ** (-7 / 8)), abs=1e-6)
    assert encoding.rotary[1][5, [0, 3, 4, 7]].tolist() == pytest.approx(
        [math.sin(angle) for angle in (1, 100 ** (-3 / 4), 2, 2 * 100 ** (-3 / 4))], abs=1e-6
    )


def test_neither_is_ignored():
    image, time, label = small.normal(1, 1, 3, 16, 24), torch.tensor([500.0]), torch.tensor([1])
    found = []
    for name in ("sincos_rope", "sincos", "extrapolation"):
        method = small.fill(build(name))
        with torch.no_grad():
            found.append(method.predict(image, time, label, method.encoding((4, 6)), None))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[2], atol=1e-3)
