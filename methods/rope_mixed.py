"""RoPE-Mixed: every band of every head and block learns its rotation per step along y and along x.

Source: Heo et al. 2024, arXiv 2403.13298, section 3.2, and the authors' code naver-ai/rope-vit (models/vit_rope.py): angle =
theta_y y + theta_x x with learned (theta_y, theta_x). Start: magnitudes 10^(-4k/K), k = 0 .. K/4 - 1, once in a direction drawn
at random for each head and block and once perpendicular to it.

Training: own, with the core's optimizer. At another grid: positions run on, as in the authors' code.
Departure: the authors exempt the frequencies from weight decay; here the protocol's holds for all weights. The base of the
start is theirs (option `base`) and not the protocol's, since it is a start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from benchmark.files import UserError
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, token_yx
from benchmark.model.method import Method


class RoPEMixed(Method):
    title = "RoPE-Mixed"
    paper = "2403.13298"
    year = 2024
    learns_positions = True

    @dataclass(frozen=True)
    class Options:
        base: float = 10.0  # of the magnitudes at the start

        def __post_init__(self) -> None:
            if not self.base > 0:
                raise UserError(f"rope_mixed: base is {self.base:g}, must be above 0")

    def build(self) -> None:
        core, quarter = self.protocol.core, self.head_width // 4
        magnitude = self.options.base ** (-torch.arange(quarter) / quarter)
        direction = 2 * math.pi * torch.rand(core.depth, core.heads, 1)
        across = direction + math.pi / 2
        x, y = (
            torch.cat([magnitude * function(direction), magnitude * function(across)], dim=-1)
            for function in (torch.cos, torch.sin)
        )
        self.theta = nn.Parameter(torch.stack([y, x]))  # [2, blocks, H, K/2], radians a token

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        position = [each.float()[:, None] for each in token_yx(grid_hw, self.device)]  # [T, 1]
        theta = self.theta.float()[..., None, :]  # [2, blocks, H, 1, K/2]
        angle = position[0] * theta[0] + position[1] * theta[1]  # [blocks, H, T, K/2]
        return Encoding(rotary=[(cos[None], sin[None]) for cos, sin in zip(angle.cos(), angle.sin(), strict=True)])
