"""Spiral RoPE: axial RoPE at two directions, its table by hand at four, perpendicular pairs, and relative positions."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import build, latent

from benchmark.files import UserError
from benchmark.model.encoding import rotate


def spiral(**options):
    return {"options": {"spiral_rope": options}}


def test_two_directions_are_axial_rope():
    ours = build("spiral_rope", **spiral(directions=2, fastest=1.0)).encode((8, 3)).rotary
    for mine, theirs in zip(ours, build("extrapolation").encode((8, 3)).rotary, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_table_by_hand():
    """2 x 3 tokens, heads of 16 channels, base 100, four directions: bands 0 and 1 on the axes, 2 and 3 on the diagonals."""
    cos, sin = build("spiral_rope", **spiral(directions=4, fastest=1.0)).encode((2, 3)).rotary
    root, rows = math.sqrt(0.5), []
    for y in (0, 1):
        for x in (0, 1, 2):
            down, right, falling, rising = y, x, root * (x + y), root * (y - x)
            rows.append(
                [down, down / 10**0.5, rising / 10, rising / 10**1.5, right, right / 10**0.5, falling / 10, falling / 10**1.5]
            )
    angle = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(cos, angle.cos().float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, angle.sin().float(), rtol=0, atol=1e-6)


def test_eight_directions_and_their_bands():
    """As released: fastest band 1.5; every direction has bands 2g, 2g + 1, 2g + 8, 2g + 9 of 16; perpendicular ones the same."""
    encoding = latent("spiral_rope").encode((2, 2))
    angle = torch.atan2(encoding.rotary[1], encoding.rotary[0]).double()  # [4, 32], below pi on this grid
    right, down = angle[1], angle[2]
    speed, direction = torch.hypot(right, down), torch.rad2deg(torch.atan2(down, right))
    theta = 1.5 * 10000 ** (-torch.arange(16).double() / 16)
    torch.testing.assert_close(speed, theta.repeat(2), rtol=1e-4, atol=0)
    turn = 22.5 * (torch.arange(16) // 2 % 4).double()
    torch.testing.assert_close(direction, torch.cat([turn + 90, turn]), rtol=0, atol=0.01)


def test_logits_depend_on_relative_positions_alone():
    q, k = torch.randn(2, 1, 2, 1, 16, generator=torch.Generator().manual_seed(0))
    turns = torch.stack(build("spiral_rope").encode((5, 3)).rotary, -1)
    at = lambda vector, y, x: rotate(vector, turns[3 * y + x, None])  # noqa: E731
    one = (at(q, 0, 0) * at(k, 2, 1)).sum(-1)
    torch.testing.assert_close(one, (at(q, 2, 1) * at(k, 4, 2)).sum(-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, (at(q, 0, 0) * at(k, 2, 2)).sum(-1), atol=0.01)


def test_odd_directions_are_refused():
    for directions in (3, 0):
        with pytest.raises(UserError, match=f"an even number of directions, not {directions}"):
            build("spiral_rope", **spiral(directions=directions))
