"""RIFLEx: the one band whose period is nearest the training grid is slowed, so that it does not repeat at test.

Source: Zhao et al. 2025, arXiv 2502.15894, eqs. 7-8, and the code thu-ml/RIFLEx (riflex_utils.py), there for the frames of a
video; here per axis: k = argmin_j |2 pi / theta_j - L|, theta_k <= 0.9 * 2 pi / L_test. Options choose another band: the one
whose period is nearest `period` training grids, or number `band` on every axis.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Departures: the code looks for the band nearest the first repetition that is seen in samples; here that length is the training
grid itself, and periods are not rounded. The code sets the band always; here a band that is slow enough stays, as in eq. 8,
which is an inequality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from benchmark.files import UserError
from benchmark.model.method import refuse_unused
from methods.extrapolation import Extrapolation


class RIFLEx(Extrapolation):
    title = "RIFLEx"
    paper = "2502.15894"
    year = 2025
    trains_as = "extrapolation"

    @dataclass(frozen=True)
    class Options:
        share: float = 0.9  # of one period that the test grid covers
        period: float = 1.0  # in training grids, of the band that is slowed
        band: int = -1  # its number, counted from the fastest; -1 finds it by its period

        def __post_init__(self) -> None:
            if min(self.share, self.period) <= 0:
                raise UserError(f"share and period must be above 0, not {self.share:g} and {self.period:g}")
            if self.band >= 0:
                refuse_unused(self, f"with band={self.band}", "period")

    def build(self) -> None:
        if not -1 <= self.options.band < self.axis_width // 2:
            raise UserError(
                f"{self.title}: band {self.options.band} is none of the {self.axis_width // 2} bands of an axis (or -1)"
            )

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        theta = self.plain()
        if tested > trained:
            nearest = int((2 * math.pi / theta - self.options.period * trained).abs().argmin())
            band = nearest if self.options.band < 0 else self.options.band
            theta[band] = min(float(theta[band]), self.options.share * 2 * math.pi / tested)
        return theta
