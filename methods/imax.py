"""I-Max: NTK with a fixed factor on the base, no band slower than interpolated.

Source: Du et al. 2024, arXiv 2410.07536, in the form of the code PRIS-CV/I-Max (transformer_flux.py): base' = 10 base, and
theta_j = max(base'^(-2j/d), theta_j / s).

Training: plain RoPE (Extrapolation's checkpoint). At the training grid or a smaller one: plain RoPE.
Departure: the code has one s, the square root of the areas' ratio; here every axis has its own. The paper's projected flow is a
guidance method, no positional encoding, and not part of this row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.files import UserError
from methods.extrapolation import Extrapolation


class IMax(Extrapolation):
    title = "I-Max"
    paper = "2410.07536"
    year = 2024
    trains_as = "extrapolation"

    @dataclass(frozen=True)
    class Options:
        factor: float = 10.0  # on the base

        def __post_init__(self) -> None:
            if self.factor <= 0:
                raise UserError(f"imax needs a positive factor on the base, not {self.factor}")

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        if tested <= trained:
            return self.plain()
        return torch.maximum(self.plain(self.rope_base * self.options.factor), self.plain() * trained / tested)
