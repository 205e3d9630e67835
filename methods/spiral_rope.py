"""Spiral RoPE: axial RoPE along more than two directions, each with a share of the bands.

Source: Liu et al. 2026, arXiv 2602.03227 (abstract: groups of channels, uniformly distributed directions, a group is rotated
by the patch position's projection onto its direction) and the authors' code for DiT (huajianduzhuo-code/Spiral_RoPE,
rope_dit/rope.py and its README): the two halves of a head keep the bands of axial RoPE, theta_j = fastest base^(-2j/d), and
bands 2i and 2i + 1 of both halves are turned together by g 90 degrees / (directions / 2), g = i mod (directions / 2). So
perpendicular directions share their bands, and no direction lacks slow ones. With two directions it is axial RoPE.

Training: own. At another grid: positions run on, as in extrapolation.
As in the authors' script (run_all.sh where nothing is given; its help names 1.0): fastest band 1.5 radians per token. Eight
directions are a reading: a path in their upload.py names rotate4 for DiT-XL/2, whose heads of 72 channels rope.py itself refuses.
Their directions go the other way round, which is a mirror image of this. The paper was read no further than its abstract.
Departures: the code rotates the table like an image, by bilinear sampling that stops at the border; here a position is projected
exactly, as the paper words it. At another grid the code squeezes positions into the trained range; the abstract does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmark.files import UserError
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, token_yx
from methods.extrapolation import Extrapolation


class SpiralRoPE(Extrapolation):
    title = "Spiral RoPE"
    paper = "2602.03227"
    year = 2026

    @dataclass(frozen=True)
    class Options:
        directions: int = 8  # an even number: a direction and the one perpendicular to it share bands
        fastest: float = 1.5  # theta_0, in radians a token

        def __post_init__(self) -> None:
            if self.directions < 2 or self.directions % 2:
                raise UserError(f"spiral_rope needs an even number of directions, not {self.directions}")
            if not self.fastest > 0:
                raise UserError(f"spiral_rope: fastest is {self.fastest:g}, must be above 0")

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        theta = self.options.fastest * self.plain()  # [J]
        pairs = self.options.directions // 2
        j = torch.arange(len(theta), device=self.device)
        turn = (j // 2 % pairs).double() * (math.pi / 2 / pairs)  # [J]
        y, x = (position.double()[:, None] for position in token_yx(grid_hw, self.device))  # [T, 1]
        # The first half of a head looks along y at no turn, the second along x.
        along = torch.cat([y * turn.cos() - x * turn.sin(), x * turn.cos() + y * turn.sin()], dim=1)  # [T, K/2]
        angle = along * theta.repeat(2)
        return Encoding(rotary=(angle.cos().float(), angle.sin().float()))
