"""Golden Gate RoPE: its table by hand, directions that spread, and relative positions."""

from __future__ import annotations

import math

import numpy as np
import torch
from strategies import build, latent

from benchmark.model.encoding import rotate


def test_table_by_hand():
    """2 x 3 tokens, two heads of 16 channels, base 100: bands 100^(-j/8); directions are 111.246 degrees apart."""
    cos, sin = build("golden_gate").encode((2, 3)).rotary
    assert cos.shape == (1, 2, 6, 8)
    for head in range(2):
        for token, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
            for j in range(8):
                a = math.radians((8 * head + j) * 111.24611797498107)
                angle = 100 ** (-j / 8) * (x * math.cos(a) + y * math.sin(a))
                assert abs(cos[0, head, token, j] - math.cos(angle)) < 1e-5
                assert abs(sin[0, head, token, j] - math.sin(angle)) < 1e-5


def test_both_ends_of_the_spectrum():
    """A token to the right turns the first band by 1 radian; the slowest of 32 bands still has a period of 4.7e4 tokens."""
    table = torch.atan2(*reversed(latent("golden_gate").encode((1, 2)).rotary))[0, 0, 1]
    a = 31 * math.pi * 2 / (1 + math.sqrt(5))
    assert table[0].item() == 1
    assert abs(table[31].item() / (10000 ** (-31 / 32) * math.cos(a)) - 1) < 1e-4


def test_directions_spread():
    """No two of a head's 32 directions (modulo a half turn) are nearer than half of an even spacing."""
    cos, sin = latent("golden_gate").encode((2, 2)).rotary
    angle = torch.atan2(sin, cos)[0, 0]  # below pi on this grid
    found = np.sort(torch.atan2(angle[2], angle[1]).double().numpy() % math.pi)  # one row down, one column right
    assert np.diff(np.append(found, found[0] + math.pi)).min() > 0.5 * math.pi / 32
    np.testing.assert_allclose(found, np.sort(np.arange(32) * math.pi * 2 / (1 + math.sqrt(5)) % math.pi), atol=1e-4)


def test_heads_differ_unless_told():
    cos, _ = build("golden_gate").encoding((3, 5)).rotary
    assert not torch.allclose(cos[:, 0], cos[:, 1], atol=0.1)
    alike, _ = build("golden_gate", options={"golden_gate": {"heads_differ": False}}).encoding((3, 5)).rotary
    assert torch.equal(alike, cos[:, :1].expand_as(cos))


def test_logits_depend_on_relative_positions_alone():
    """On a rectangle: the same two vectors, moved together by two rows and one column."""
    q, k = torch.randn(2, 1, 2, 1, 16, generator=torch.Generator().manual_seed(0))
    turns = torch.stack(build("golden_gate").encode((5, 3)).rotary, -1)
    at = lambda vector, y, x: rotate(vector, turns[:, :, 3 * y + x, None])  # noqa: E731
    one = (at(q, 0, 0) * at(k, 2, 1)).sum(-1)
    torch.testing.assert_close(one, (at(q, 2, 1) * at(k, 4, 2)).sum(-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, (at(q, 0, 0) * at(k, 2, 2)).sum(-1), atol=0.01)
