"""The learned table and its bicubic resize against the kernel of Keys (1981)."""

from __future__ import annotations

import pytest
import torch
from strategies import build


def keys(distance: float, a: float = -0.75) -> float:
    """The bicubic kernel (Keys 1981) with the parameter of torch and OpenCV."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)


def test_learned_table():
    method = build("learned")
    assert method.table.shape == (1, 32, 4, 6)
    assert method.table.requires_grad
    assert abs(method.table.std() - 0.02) < 0.003
    assert torch.equal(method.encode((4, 6)).add, method.table[0].flatten(1).T)
    with torch.no_grad():
        method.table.copy_(torch.arange(6.0).expand(1, 32, 4, 6))
    larger = method.encode((8, 12)).add.view(8, 12, 32)
    near, far = (keys(0.25), keys(0.75)), (keys(1.25), keys(1.75))  # weights of the tokens on either side
    centre = 1 * near[1] + 2 * near[0] + 0 * far[1] + 3 * far[0]
    assert larger[3, 4, 0].item() == pytest.approx(centre, abs=1e-5), "1.75 between tokens 1 and 2"
    assert torch.equal(larger[0], larger[7])
    before = method.encoding((8, 12)).add.clone()
    with torch.no_grad():
        method.table.add_(1)
    assert not torch.equal(before, method.encoding((8, 12)).add), "a table that was trained on is not cached"
