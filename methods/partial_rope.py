"""Partial RoPE: only a share of each axis' channels is rotated; the others compare content wherever they are.

Source: partial rotary positions of language models (GPT-NeoX, Black et al. 2022, arXiv 2204.06745, a quarter of a head;
`partial_rotary_factor` in transformers): the rotary width is r = share d, its frequencies are base^(-2j/r), and the other
channels keep cos 1, sin 0. For images the technical report of Krea 2 (2026) names partial RoPE as better without training from
256 to 512 pixels, without duplicated objects, though not after training on at the larger size.

Training: own. At another grid: positions run on, as in extrapolation.
Our choices: half of each axis is rotated (option `share`), in the first channels of each axis' half. Which share and which
channels Krea's experiment had was not read. The model that was released rotates all 128 channels of a head, 32 by a third axis
and 48 by each of the image's two, at base 1000 (its code in diffusers): it is no partial RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.files import UserError
from benchmark.model.encoding import frequencies
from methods.extrapolation import Extrapolation


class PartialRoPE(Extrapolation):
    title = "Partial RoPE"
    paper = "2204.06745"
    year = 2022

    @dataclass(frozen=True)
    class Options:
        share: float = 0.5  # of an axis' bands that are rotated

        def __post_init__(self) -> None:
            if not 0 < self.share <= 1:
                raise UserError(f"partial_rope rotates a share of the bands in (0, 1], not {self.share}")

    def plain(self, base: float | None = None) -> Tensor:
        """The frequencies of the rotated bands, then zeros: float64 [d / 2]."""
        bands = self.axis_width // 2
        turning = max(1, round(self.options.share * bands))
        still = torch.zeros(bands - turning, dtype=torch.float64, device=self.device)
        return torch.cat([frequencies(2 * turning, base or self.rope_base, self.device), still])
