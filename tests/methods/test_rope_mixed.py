"""RoPE-Mixed against timm: start, tables at any grid, the rotation itself; and that it learns."""

from __future__ import annotations

import math

import pytest
import small
import torch
from strategies import build, latent
from timm.layers import RotaryEmbeddingMixed, pos_embed_sincos

from benchmark.model.encoding import rotate


def peer(width: int, depth: int, heads: int, grid_hw: tuple[int, int]) -> RotaryEmbeddingMixed:
    torch.manual_seed(3)
    return RotaryEmbeddingMixed(dim=width, depth=depth, num_heads=heads, temperature=10.0, feat_shape=list(grid_hw))


@pytest.mark.parametrize("grid_hw", [(2, 3), (4, 6), (8, 3), (1, 5)])
def test_tables_equal_timm(grid_hw):
    """Its frequencies in ours: theirs are (x, y), ours (y, x)."""
    theirs = peer(32, 2, 2, grid_hw)
    ours = build("rope_mixed")
    with torch.no_grad():
        ours.theta.copy_(theirs.freqs.view(2, 2, 2, 8).flip(0))
        sin, cos = theirs.get_embed().chunk(2, -1)  # [blocks, H, T, K], every angle twice
        rotary = ours.encode(grid_hw).rotary
    assert len(rotary) == 2
    for block, tables in enumerate(rotary):
        for mine, other in zip(tables, (cos, sin), strict=True):
            assert mine.shape == (1, 2, math.prod(grid_hw), 8)
            torch.testing.assert_close(mine[0].repeat_interleave(2, -1), other[block], rtol=0, atol=2e-6)
    q = small.normal(1, 3, 2, math.prod(grid_hw), 16)
    turned = pos_embed_sincos.apply_rot_embed_cat(q, theirs.get_embed()[1])
    torch.testing.assert_close(rotate(q, torch.stack(rotary[1], -1)), turned, rtol=1e-4, atol=1e-5)


def test_starts_as_published():
    """Magnitudes 10^(-4k/64) as in timm, the second half perpendicular to the first, every head turned by its own angle."""
    theta = build("rope_mixed", core={"width": 256, "heads": 4, "depth": 6}).theta.detach()  # [y and x, blocks, H, K/2]
    speed = torch.hypot(theta[0], theta[1])
    torch.testing.assert_close(speed[..., :16], speed[..., 16:], rtol=1e-5, atol=0)
    theirs = pos_embed_sincos.init_random_2d_freqs(64, 1, 1, temperature=10.0)
    torch.testing.assert_close(speed, torch.hypot(*theirs)[0, 0].expand(6, 4, 32), rtol=1e-5, atol=0)
    assert (speed[0, 0, 0].item(), speed[0, 0, 15].item()) == pytest.approx((1, 10 ** (-15 / 16)), rel=1e-5)
    assert (theta[0, ..., :16] * theta[0, ..., 16:] + theta[1, ..., :16] * theta[1, ..., 16:]).abs().max() < 1e-6
    angles = torch.atan2(theta[0], theta[1])[..., 0].flatten()
    assert len(set(angles.tolist())) == 24
    assert angles.min() < -1
    assert angles.max() > 1


def test_learns():
    method = small.fill(build("rope_mixed").train())
    before = method.encode((4, 6)).rotary[0][0].detach()
    small.loss(method).backward()
    assert method.theta.grad.abs().min(dim=-1).values.max() > 0
    torch.optim.SGD([method.theta], lr=100.0).step()
    assert not torch.allclose(before, method.encode((4, 6)).rotary[0][0], atol=1e-4)
    assert method.theta.numel() == 2 * 2 * 2 * 8


def test_logits_depend_on_relative_positions_alone():
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        turns = torch.stack(latent("rope_mixed").encode((5, 3)).rotary[0], -1)
    at = lambda vector, y, x: rotate(vector, turns[:, :, 3 * y + x, None])  # noqa: E731
    one = (at(q, 0, 0) * at(k, 2, 1)).sum(-1)
    torch.testing.assert_close(one, (at(q, 2, 1) * at(k, 4, 2)).sum(-1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, (at(q, 0, 0) * at(k, 2, 2)).sum(-1), atol=0.01)
