"""RIFLEx: the one band whose period is nearest the training grid is slowed, so that it does not repeat at test.

Source: Zhao et al. 2025, arXiv 2502.15894, eqs. 7-8, and the code thu-ml/RIFLEx (riflex_utils.py), there for the frames of a
video; here per axis: k = argmin_j |2 pi / theta_j - L|, theta_k = 0.9 * 2 pi / L_test.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Departure: the code looks for the band nearest the first repetition that is seen in samples; here that length is the training
grid itself, and periods are not rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from methods.extrapolation import Extrapolation


class RIFLEx(Extrapolation):
    title = "RIFLEx"
    trains_as = "extrapolation"

    @dataclass(frozen=True)
    class Options:
        share: float = 0.9  # of one period that the test grid covers

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        theta = self.plain()
        if tested > trained:
            intrinsic = (2 * math.pi / theta - trained).abs().argmin()
            theta[intrinsic] = self.options.share * 2 * math.pi / tested
        return theta
