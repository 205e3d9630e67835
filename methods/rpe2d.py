"""RPE-2D: positions drawn at random, in order, from a range as large as any test grid, so that none at test lies outside it.

Source: arXiv 2503.18719, which has no public code. This is REIMPLEMENTED FROM THE ABSTRACT of its versions 1 and 2, and may
differ from the paper where the abstract gives no detail. The abstract says: positions are drawn independently for y and x over an
expanded range in training, so that the model learns the order of patches; test positions lie inside the range seen in training;
random resize-and-crop augmentation; micro-conditioning on the crop.

Training: for each sample and axis, h distinct integers out of 0 .. H_max - 1, ascending, every subset equally likely (the
rule of Ruoss et al. 2023, arXiv 2305.16843, per axis), one draw for all layers and both halves of guidance. The reader
resizes the short side to a random length in [S, k S] and crops S x S; the crop enters through the conditioner.
At another grid: positions evenly spaced over [0, H_max - 1], deterministic (in general not integers, unlike in training); no
crop, original size = target size. Attention scaling and timestep shift at larger sizes are no part of any method here but
switches of the protocol, off except in the protocols named after them.
Our choices, all of them options: H_max, the spacing at test, k, the share of training images that are not augmented, and the
conditioner's form, which follows SDXL (arXiv 2307.01952, section 2.2): numbers, each in 256 sinusoids, through an MLP whose
last layer starts at zero. SDXL's six numbers are pixels, among which those of a larger image are new at test; the relative
ones say "no crop" by (1, 1, 0, 0) at every size, which training shows in the share that is not augmented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.files import UserError, unknown
from benchmark.model.dit import sinusoids
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, rotary
from benchmark.model.method import refuse_unused
from benchmark.streams import POSITIONS
from methods.extrapolation import Extrapolation

SPACINGS = ("even", "expected", "random")
CONDITIONINGS = ("relative", "pixels")


def check_augmentation(name: str, options: Any) -> None:
    """Raises UserError where the options of the augmentation are out of their ranges, or have no effect."""
    if options.resize != 0 and not options.resize >= 1:
        raise UserError(f"{name}: resize is {options.resize:g}, must be 0, for no augmentation, or at least 1")
    if not 0 <= options.uncropped <= 1:
        raise UserError(f"{name}: uncropped is {options.uncropped:g}, must be a probability from 0 to 1")
    if not options.resize:
        refuse_unused(options, "with resize=0", "uncropped")


def augmentation(options: Any) -> tuple[str, dict[str, Any]] | None:
    """The reader's augmentation and its options, as `Method.augmentation_of`; None where it is off."""
    if not options.resize:
        return None
    return "random_resize_crop", {"largest": options.resize, "uncropped": options.uncropped}


class RPE2D(Extrapolation):
    title = "RPE-2D"
    revision = 2
    paper = "2503.18719"
    year = 2025
    note = "reimplemented from the abstract"
    augments = "resize"

    @dataclass(frozen=True)
    class Options:
        h_max: int = 0  # positions per axis; 0 is the largest test grid of the protocol
        spacing: str = "even"  # at test: "even", "expected" (the means of training), or "random" as Ruoss et al. do
        resize: float = 1.5  # k of the augmentation; 0 turns the augmentation off
        uncropped: float = 0.5  # probability that a training image is not augmented
        micro_conditioning: bool = True
        conditioning: str = "relative"  # what it is told: "relative" numbers, or SDXL's six in "pixels"

        def __post_init__(self) -> None:
            for name, value, choices in (("spacing", self.spacing, SPACINGS), ("conditioning", self.conditioning, CONDITIONINGS)):
                if value not in choices:
                    raise unknown(f"rpe2d {name}", value, choices)
            check_augmentation("rpe2d", self)
            if not self.micro_conditioning:
                refuse_unused(self, "with micro_conditioning=false", "conditioning")

    def build(self) -> None:
        self.h_max = self.options.h_max or self.largest_grid
        if self.h_max < max(self.train_grid):
            raise UserError(f"rpe2d: h_max {self.h_max} is smaller than the training grid {self.train_grid}")
        if self.options.micro_conditioning:
            self.conditioner = MicroConditioner(self.protocol.core.width, self.options.conditioning == "relative")

    @classmethod
    def augmentation_of(cls, options: Any) -> tuple[str, dict[str, Any]]:
        return augmentation(options) or super().augmentation_of(options)

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        if max(grid_hw) > self.h_max:
            raise UserError(
                f"rpe2d: a grid of {grid_hw[0]} x {grid_hw[1]} tokens has more than h_max = {self.h_max} on an axis; "
                "train with a larger options.rpe2d.h_max"
            )
        rows, columns = (self.positions(n, axis, draws) for axis, n in enumerate(grid_hw))
        tables = rotary(rows, columns, self.plain(), self.plain())
        # One table a sample in training: [B, T, K/2] -> [B, 1, T, K/2], shared by the heads.
        return Encoding(rotary=tables if draws is None else tuple(table[:, None] for table in tables))

    def positions(self, count: int, axis: int, draws: Draws | None) -> Tensor:
        """The positions of `count` tokens on an axis: [B, count] in training, [count] at test."""
        if draws is not None:
            return draws.subsets(count, self.h_max)
        if self.options.spacing == "random":
            return Draws(self.seed, axis, (0, 1), 1, self.device, POSITIONS).subsets(count, self.h_max)[0]
        if self.options.spacing == "expected":
            # The i-th smallest of `count` distinct integers out of 1 .. H is i (H + 1) / (count + 1) on average; ours start at 0.
            order = torch.arange(1, count + 1, device=self.device).double()
            return order * (self.h_max + 1) / (count + 1) - 1
        if count == 1:
            return torch.full((1,), (self.h_max - 1) / 2, dtype=torch.float64, device=self.device)
        return torch.arange(count, device=self.device).double() * (self.h_max - 1) / (count - 1)


class MicroConditioner(nn.Module):
    """Size and crop conditioning: [B, 6] pixels (original h, w, crop y, x, target h, w) -> [B, D].

    Args:
        relative: whether it is told original / target (h, w) and crop / target (y, x), each times SCALE; else all six in
            pixels, as in SDXL.
    """

    SCALE = 256  # ratios become the pixels of a target of 256, a scale that SDXL's sinusoids are made for

    def __init__(self, width: int, relative: bool = False) -> None:
        super().__init__()
        self.relative = relative
        self.mlp = nn.Sequential(nn.Linear((4 if relative else 6) * 256, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, crop: Tensor) -> Tensor:
        if self.relative:
            crop = self.SCALE * crop[:, :4] / crop[:, 4:].repeat(1, 2)
        return self.mlp(sinusoids(crop, 256).flatten(1))
