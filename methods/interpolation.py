"""Position interpolation (PI): a larger grid is squeezed into the trained range of positions.

Source: Chen et al. 2023, arXiv 2306.15595, eq. 4, per axis: theta_j / s with s = max(test grid / L, 1), which is the same as
positions / s. Vision form: FiT, mode `linear`.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
"""

from __future__ import annotations

from torch import Tensor

from methods.extrapolation import Extrapolation


class Interpolation(Extrapolation):
    title = "Interpolation"
    paper = "2306.15595"
    year = 2023
    trains_as = "extrapolation"

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        return self.plain() / max(tested / trained, 1)
