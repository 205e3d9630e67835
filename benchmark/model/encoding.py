"""Encoding: the points where positions can enter a transformer; token coordinates; arithmetic of rotary tables.

Shapes: B batch, H heads, T tokens (row by row), D width of the core, K width of a head, J = K / 4 frequencies per axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Mask = Tensor | Literal["causal"] | None
Tables = tuple[Tensor, Tensor]  # cos and sin


@dataclass
class Encoding:
    """What a method hands to the core. The core applies the fields that are there and asks nothing else.

    Attributes:
        add: [T, D] or [B, T, D], added to the tokens once.
        rotary: (cos, sin), each [T, K/2], [1, H, T, K/2] or [B, 1, T, K/2]; entry k turns channels (2k, 2k + 1) of q and k. A
            table holds each angle once, although it serves two channels: the copies would only be multiplied in vain. One
            pair for all blocks, or a list with a pair for each block.
        mask: one entry a block: None, "causal" (raster order, in the fused kernel), or boolean [T, T] or [H, T, T], true
            where a query (row) may look at a key (column).
        bias: one entry a block: None, or float [H, T, T] (or [1, T, T] for all heads), added to the logits after their scale.
            The core takes one entry at a time, so a sequence may make them when they are asked for.
        logit_scale: a factor on the attention logits, on top of 1 / sqrt(K). It does not touch the bias.
        stem: keyword arguments of the method's stem at this step.

    No field has both a batch axis and two axes of tokens: T x T numbers a sample would not fit.
    """

    add: Tensor | None = None
    rotary: Tables | list[Tables] | None = None
    mask: Sequence[Mask] | None = None
    bias: Sequence[Tensor | None] | None = None
    logit_scale: float = 1.0
    stem: Mapping[str, Any] = field(default_factory=dict)

    def turns(self, depth: int) -> list[Tensor | None]:
        """What each of `depth` blocks turns q and k by: cos and sin side by side, [..., T, K/2, 2]."""
        if not isinstance(self.rotary, list):
            return [None if self.rotary is None else torch.stack(self.rotary, dim=-1)] * depth
        return [torch.stack(tables, dim=-1) for tables in self.rotary]


def token_yx(grid_hw: tuple[int, int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Row and column of every token, row by row: two integer tensors [T]."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in grid_hw), indexing="ij")
    return y.flatten(), x.flatten()


def distances(grid_hw: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """The Euclidean distance between any two tokens of a grid, in tokens: float64 [T, T]."""
    y, x = (position.double() for position in token_yx(grid_hw, device))
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def frequencies(width: int, base: float, device: torch.device | str | None = None) -> Tensor:
    """theta_j = base^(-2j / width) for j = 0 .. width/2 - 1 (Su et al. 2021, RoFormer, eq. 15): float64 [width / 2].

    Args:
        width: channels that one axis turns; even.
        base: 10000 in language models, often 100 on short grids.
    """
    if width % 2:
        raise ValueError(f"a rotary axis turns pairs of channels: its width must be even, not {width}")
    exponent = torch.arange(0, width, 2, device=device).double() / width
    return base**-exponent


def rotary(rows: Tensor, columns: Tensor, theta_y: Tensor, theta_x: Tensor, scale: float = 1.0) -> Tables:
    """Axial rotary tables: the first half of a head turns with y, the second with x (FiT, rope.py).

    Args:
        rows, columns: [..., h] and [..., w] positions on the two axes; any number type.
        theta_y, theta_x: [J] frequencies in radians per position.
        scale: a factor on both tables (YaRN's temperature).

    Returns:
        (cos, sin), each float32 [..., h w, 2J]. Angles are computed in float64, so that large positions lose nothing.
    """
    h, w = rows.shape[-1], columns.shape[-1]
    # Trigonometry once an axis, not once a token.
    angle_y = (rows.double()[..., None] * theta_y.double())[..., :, None, :]  # [..., h, 1, J]
    angle_x = (columns.double()[..., None] * theta_x.double())[..., None, :, :]  # [..., 1, w, J]

    def table(function: Callable[[Tensor], Tensor]) -> Tensor:
        y, x = ((function(angle) * scale).float() for angle in (angle_y, angle_x))
        grid = (*y.shape[:-3], h, w, y.shape[-1])
        return torch.cat([y.expand(grid), x.expand(grid)], -1).flatten(-3, -2)

    return table(torch.cos), table(torch.sin)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns channel pairs (2k, 2k + 1) of x [..., T, K] by angles given as cos and sin: turns [..., T, K/2, 2].

    Computed in float32 whatever the type of x, which the result keeps.
    """
    pairs = x.unflatten(-1, (-1, 2)).float()
    if torch.compiler.is_compiling():  # the compiler fuses real numbers, and not complex ones
        (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    else:  # a product of complex numbers reads the channels in the order they lie in: several times faster on a CPU
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)


def sincos_table(position_y: Tensor, position_x: Tensor, width: int) -> Tensor:
    """DiT's fixed table (Peebles and Xie 2023; MAE): [T, D] float32.

    The FIRST half of the channels encodes the column; each half is [sin | cos] over omega_k = 10000^(-k / (D / 4)).

    Args:
        position_y, position_x: [T] positions of the tokens.
        width: D, divisible by 4.
    """
    if width % 4:
        raise ValueError(f"the sin-cos table needs a width divisible by 4, not {width}")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, device=position_y.device).double() / (width / 4))
    halves = [position.double()[:, None] * omega for position in (position_x, position_y)]
    return torch.cat([part for half in halves for part in (half.sin(), half.cos())], -1).float()


def attention_scale(rule: str, tokens: int, trained_tokens: int) -> float:
    """The protocol's factor on the logits at `tokens` tokens for a model trained at `trained_tokens`.

    "jin": sqrt(ln N / ln N_train) (Jin et al. 2023); "fitv2": max(1, ln N / ln N_train) (FiTv2); "none": 1.
    At the training size it is exactly 1. A grid of one token has no attention to scale: 1.
    """
    if rule == "none" or tokens == trained_tokens or tokens < 2 or trained_tokens < 2:
        return 1.0
    growth = math.log(tokens) / math.log(trained_tokens)
    return {"jin": math.sqrt(growth), "fitv2": max(1.0, growth)}[rule]
