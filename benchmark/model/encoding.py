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
            table holds each angle once, although it serves two channels: copies would only cost multiplications. One
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


def fault(encoding: Any, depth: int, heads: int, tokens: int, width: int, batch: int = 0) -> str:
    """What is wrong with the types and shapes of an encoding, or "". A sequence of biases is gone through once.

    Args:
        depth, heads, width: of the core.
        batch: samples that may have an encoding each; 0 in sampling, where one serves all.
    """
    if not isinstance(encoding, Encoding):
        return f"encode must return an Encoding, not {type(encoding).__name__}"
    square, half = (tokens, tokens), width // heads // 2

    def told(name: str, value: Any, wanted: str) -> str:
        is_tensor = isinstance(value, Tensor)
        return f"{name} must be {wanted}, not {value.dtype} {list(value.shape)}" if is_tensor else f"{name} must be {wanted}"

    def shaped(value: Any, *shapes: tuple[int, ...]) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) in shapes

    each = [(batch, tokens, width)] if batch else []
    if encoding.add is not None and not shaped(encoding.add, (tokens, width), *each):
        return told("add", encoding.add, f"float [T, D] = [{tokens}, {width}]" + (" or [B, T, D]" if batch else ""))
    pairs = encoding.rotary if isinstance(encoding.rotary, list) else [] if encoding.rotary is None else [encoding.rotary]
    if isinstance(encoding.rotary, list) and len(pairs) != depth:
        return f"rotary must hold a pair for each of {depth} blocks, not {len(pairs)}"
    each = [(batch, 1, tokens, half)] if batch else []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return f"rotary must be a pair (cos, sin), not {type(pair).__name__}"
        for table in pair:
            if not shaped(table, (tokens, half), (1, heads, tokens, half), *each):
                known = f"float [T, K/2] = [{tokens}, {half}] or [1, H, T, K/2]" + (" or [B, 1, T, K/2]" if batch else "")
                return told("a table of rotary", table, known)
    for name in ("mask", "bias"):
        entries = getattr(encoding, name)
        is_sequence = isinstance(entries, Sequence) and not isinstance(entries, str)
        if entries is not None and not (is_sequence and len(entries) == depth):
            held = len(entries) if is_sequence else type(entries).__name__
            return f"{name} must be a sequence with an entry for each of {depth} blocks, not {held}"
    masks = encoding.mask or ()
    for number, mask in enumerate(masks):
        if mask is None or (isinstance(mask, str) and mask == "causal") or any(mask is other for other in masks[:number]):
            continue
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) not in (square, (heads, *square)):
            known = f'None, "causal", or bool [T, T] = [{tokens}, {tokens}] or [H, T, T]'
            return told(f"mask[{number}]", mask, known)
        if mask.device.type != "meta" and not mask.any(-1).all():
            return f"mask[{number}] has a query that sees no key"
    seen: set[int] = set()
    for number, bias in enumerate(encoding.bias or ()):
        if bias is not None and id(bias) not in seen and not shaped(bias, (heads, *square), (1, *square)):
            return told(f"bias[{number}]", bias, f"None, or float [H, T, T] = [{heads}, {tokens}, {tokens}] or [1, T, T]")
        if isinstance(encoding.bias, list):
            seen.add(id(bias))
    if not isinstance(encoding.logit_scale, float | int) or -math.inf < encoding.logit_scale <= 0:
        return f"logit_scale must be a positive number, not {encoding.logit_scale!r:.40}"
    return ""


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
