"""YaRN: bands that turn often inside the training grid stay, slow ones are interpolated, those between are blended.

Source: Peng et al. 2023, arXiv 2309.00071, eqs. 17-22, with the ramp of the code jquesnelle/yarn, which is linear in a band's
number where the paper's (eq. 18) is linear in its turns; per axis as FiT's `yarn` ("VisionYaRN").
    theta'_j = theta_j m_j + theta_j / s (1 - m_j),   m_j = 1 - clamp((j - low) / (high - low), 0, 1),
    low = floor(c(beta_fast)), high = ceil(c(beta_slow)), clamped to [0, d - 1],   c(r) = d ln(L / (2 pi r)) / (2 ln base),
and cos and sin both times 0.1 ln s + 1 (so the logits by its square), s being the larger axis' stretch.
With L = 16, base 10000 and the language models' constants m = (1, 0.5, 0, 0, ...): all but two bands are fully interpolated.
The first band always stays. By eq. 18, whose ramp is in turns r, it would not on a short axis: with L = 8 or 16, m = (r - 1) / 31
is at most 0.05 for every band, so that the formula as printed is interpolation with a temperature.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE, no temperature.
Departure: where the protocol scales the attention of all methods, YaRN's own temperature is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from benchmark.files import UserError
from methods.extrapolation import Extrapolation


class YaRN(Extrapolation):
    title = "YaRN"
    paper = "2309.00071"
    year = 2023
    trains_as = "extrapolation"

    @dataclass(frozen=True)
    class Options:
        beta_fast: float = 32.0  # turns inside the training grid from which a band stays
        beta_slow: float = 1.0  # turns up to which a band is interpolated
        temperature: float = 0.1  # factor of ln s

        def __post_init__(self) -> None:
            if not 0 < self.beta_slow < self.beta_fast:
                raise UserError(f"yarn needs 0 < beta_slow < beta_fast, not {self.beta_slow} and {self.beta_fast}")

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        if tested <= trained:
            return self.plain()
        theta, stretch = self.plain(), tested / trained
        kept = 1 - self.ramp(trained, self.options.beta_fast, self.options.beta_slow)
        return theta * kept + theta / stretch * (1 - kept)

    def attention_factor(self, stretch: float) -> float:
        return self.options.temperature * math.log(stretch) + 1
