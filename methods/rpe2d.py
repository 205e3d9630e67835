"""RPE-2D: positions drawn at random, in order, from a range as large as any test grid, so no test position is new.

Source: arXiv 2503.18719. Only its abstract could be read, and no code is public: this is REIMPLEMENTED FROM THE ABSTRACT.
Read there: positions are drawn independently for y and x over an expanded range in training, so that the model learns the
order of patches; test positions lie inside the range seen in training; random resize-and-crop augmentation;
micro-conditioning on the crop.

Training: for each sample and axis, h distinct integers out of 0 .. H_max - 1, ascending, every subset equally likely (the
rule of Ruoss et al. 2023, arXiv 2305.16843, per axis), one draw for all layers and both halves of guidance. The reader
resizes the short side to a random length in [S, k S] and crops S x S; the crop enters through the conditioner.
At another grid: positions evenly spaced over [0, H_max - 1], deterministic; no crop, original size = target size.
Our choices, all of them options: H_max, the spacing at test, k, and the conditioner's form, which follows SDXL
(arXiv 2307.01952, section 2.2): six numbers, each in 256 sinusoids, through an MLP whose last layer starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.files import UserError, unknown
from benchmark.model.dit import sinusoids
from benchmark.model.encoding import Encoding, rotary
from benchmark.streams import POSITIONS, Draws
from methods.extrapolation import Extrapolation


class RPE2D(Extrapolation):
    title = "RPE-2D"
    paper = "2503.18719"
    year = 2025
    note = "reimplemented from the abstract"

    @dataclass(frozen=True)
    class Options:
        h_max: int = 0  # positions per axis; 0 is the largest test grid of the protocol
        spacing: str = "even"  # at test: "even", or "random" as Ruoss et al. do
        resize: float = 1.5  # k of the augmentation; 0 turns the augmentation off
        micro_conditioning: bool = True

        def __post_init__(self) -> None:
            if self.spacing not in ("even", "random"):
                raise unknown("rpe2d spacing", self.spacing, ("even", "random"))

    @classmethod
    def derive(cls, grids: Sequence[tuple[int, int]], options: Any) -> dict[str, Any]:
        return {"h_max": options.h_max or max(map(max, grids))}

    def build(self) -> None:
        self.h_max = self.derived["h_max"]
        if self.h_max < max(self.train_grid):
            raise UserError(f"rpe2d: h_max {self.h_max} is smaller than the training grid {self.train_grid}")
        if self.options.micro_conditioning:
            self.conditioner = MicroConditioner(self.protocol.core.width)

    @classmethod
    def augmentation_of(cls, options: Any) -> tuple[str, dict[str, Any]]:
        if not options.resize:
            return super().augmentation_of(options)
        return "random_resize_crop", {"largest": options.resize}

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        if max(grid_hw) > self.h_max:
            raise UserError(
                f"rpe2d: a grid of {grid_hw[0]} x {grid_hw[1]} tokens has more than h_max = {self.h_max} on an axis; "
                "train with a larger options.rpe2d.h_max"
            )
        rows, columns = (self.positions(n, axis, draws) for axis, n in enumerate(grid_hw))
        tables = rotary(rows, columns, self.plain(), self.plain())
        # One table a sample in training: [B, T, J] -> [B, 1, T, J], shared by the heads.
        return Encoding(rotary=tables if draws is None else tuple(table[:, None] for table in tables))

    def positions(self, count: int, axis: int, draws: Draws | None) -> Tensor:
        """The positions of `count` tokens on an axis: [B, count] in training, [count] at test."""
        if draws is not None:
            return draws.subsets(count, self.h_max)
        if self.options.spacing == "random":
            return Draws(self.seed, axis, (0, 1), 1, self.device, POSITIONS).subsets(count, self.h_max)[0]
        if count == 1:
            return torch.full((1,), (self.h_max - 1) / 2, dtype=torch.float64, device=self.device)
        return torch.arange(count, device=self.device).double() * (self.h_max - 1) / (count - 1)


class MicroConditioner(nn.Module):
    """SDXL's size and crop conditioning: [B, 6] pixels (original h, w, crop y, x, target h, w) -> [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6 * 256, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, crop: Tensor) -> Tensor:
        return self.mlp(sinusoids(crop, 256).flatten(1))
