"""The sin-cos table: added, and run on."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import build


def test_sincos_is_added_and_extrapolates():
    method = build("sincos")
    small_grid, large = method.encode((4, 6)).add, method.encode((8, 12)).add
    torch.testing.assert_close(large.view(8, 12, 32)[:4, :6].reshape(24, 32), small_grid)
    assert large[1, 0].item() == pytest.approx(math.sin(1), abs=1e-6), "the first half of the channels encodes the column"
    assert large[12, 16].item() == pytest.approx(math.sin(1), abs=1e-6)
