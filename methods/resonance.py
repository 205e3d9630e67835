"""Resonance: bands are first moved to whole numbers of turns on the training grid, then stretched by parts.

Source: UltraFlux (arXiv 2511.18050; W2GenAI-Lab/UltraFlux, transformer_flux_visionyarn.py): r = L theta / (2 pi); where r >= 1,
theta = 2 pi round(r) / L. Then NTK by parts on the moved bands, where the NTK frequency of a band is theta^(ln base' / ln base),
and YaRN's temperature. Resonance RoPE (Wang et al. 2024, arXiv 2403.00071), after which it is named, rounds wavelengths
instead of turns.

Training: plain RoPE (Extrapolation's checkpoint). At the training grid or a smaller one: plain RoPE, as in the code.
As in the authors' later code, read in two copies of it: a band is moved by its number of turns, and bands below one turn stay (an
earlier commit, read in their repository, counted the turns of 1 / theta and rounded slow bands up to one). Departures: ramps end
at band d - 1 at the latest, as in FiT, and not at d / 2 as in that code; the temperature follows the larger axis, as in our YaRN,
where that code has one per axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.ntk_by_parts import NTKByParts


class Resonance(NTKByParts):
    title = "Resonance"
    paper = "2511.18050"
    year = 2025

    @dataclass(frozen=True)
    class Options(NTKByParts.Options):
        temperature: float = 0.1  # factor of ln s

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        if tested <= trained:
            return self.plain()
        theta, stretch, d = self.plain(), tested / trained, self.axis_width
        turns = trained * theta / (2 * math.pi)
        theta = torch.where(turns >= 1, 2 * math.pi * turns.round() / trained, theta)
        growth = 1.0 if d == 2 else 1 + d / (d - 2) * math.log(stretch) / math.log(self.rope_base)  # ln base' / ln base
        return self.blend(theta, theta**growth, trained, stretch)

    def attention_factor(self, stretch: float) -> float:
        return self.options.temperature * math.log(stretch) + 1
