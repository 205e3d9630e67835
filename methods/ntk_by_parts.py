"""NTK by parts: bands that turn often stay, slow ones are interpolated, those between take NTK's frequency.

Source: bloc97 2023, in jquesnelle/yarn (PartNTK) and FiT (mode `ntk-by-parts`), per axis. The paper linked here
gives another formula under this name (eq. 20: YaRN without its temperature) and says that a variant was released, which this is:
    theta'  = theta_NTK k + theta / s (1 - k),   k = 1 - ramp(beta_0 = 1.25, beta_1 = 0.75),
    theta'' = theta k' + theta' (1 - k'),        k' = 1 - ramp(gamma_0 = 16, gamma_1 = 2),
the ramps counting turns inside the training grid as YaRN's does. No temperature.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from benchmark.files import UserError
from methods.ntk import NTK


class NTKByParts(NTK):
    title = "NTK-by-parts"
    paper = "2309.00071"
    year = 2023

    @dataclass(frozen=True)
    class Options:
        beta_0: float = 1.25  # turns from which a band takes NTK's frequency
        beta_1: float = 0.75  # turns up to which it is interpolated
        gamma_0: float = 16.0  # turns from which a band stays
        gamma_1: float = 2.0  # turns up to which it does not, but for the first band, which stays

        def __post_init__(self) -> None:
            if not (0 < self.beta_1 < self.beta_0 and 0 < self.gamma_1 < self.gamma_0):
                raise UserError("NTK-by-parts needs 0 < beta_1 < beta_0 and 0 < gamma_1 < gamma_0")

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        if tested <= trained:
            return self.plain()
        return self.blend(self.plain(), super().theta(trained, tested, time), trained, tested / trained)

    def blend(self, plain: Tensor, ntk: Tensor, trained: int, stretch: float, factor: float = 1.0) -> Tensor:
        """Interpolated -> NTK -> plain frequencies by the turns of each band; `factor` multiplies the four thresholds."""
        options = self.options
        kept = 1 - self.ramp(trained, options.beta_0 * factor, options.beta_1 * factor)
        theta = ntk * kept + plain / stretch * (1 - kept)
        kept = 1 - self.ramp(trained, options.gamma_0 * factor, options.gamma_1 * factor)
        return plain * kept + theta * (1 - kept)
