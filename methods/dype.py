"""DyPE: how far positions are stretched follows the noise level: strongly near noise, not at all near data.

Source: Issachar et al., arXiv 2510.20766, and the code guyyariv/DyPE (flux/transformer_flux.py); kappa = t^2 with t = 1 noise, as
here. Two forms (option `form`):
    "yarn"  NTK by parts with its four thresholds times kappa, and YaRN's temperature (which does not depend on the time);
    "ntk"   base' = base (s^(d / (d - 2)))^(2 kappa), no temperature.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Departures: at kappa = 0 the thresholds are zero and every band turns more often than that: plain RoPE, the limit; the public code
divides by it, and just above it blends the wrong way round (its ramp is empty there). Ramps end at band d - 1 at the latest, as
in FiT, and not at d / 2 as in that code: the results differ only close to data. The temperature follows the larger axis, as in
our YaRN; the code takes each axis' own. With a DDPM objective t is the flow's time of the same signal-to-noise ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from benchmark.files import unknown
from benchmark.model.method import refuse_unused
from methods.ntk_by_parts import NTKByParts

FORMS = ("ntk", "yarn")


class DyPE(NTKByParts):
    title = "DyPE"
    paper = "2510.20766"
    year = 2025
    revision = 2  # under DDPM: the time of equal signal-to-noise ratio
    timed = True

    @dataclass(frozen=True)
    class Options(NTKByParts.Options):
        form: str = "yarn"
        exponent: float = 2.0  # kappa = t^exponent
        strength: float = 2.0  # of the NTK form: the exponent of the stretch at pure noise
        temperature: float = 0.1  # factor of ln s, in the YaRN form

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.form not in FORMS:
                raise unknown("dype form", self.form, FORMS)
            thresholds = ("beta_0", "beta_1", "gamma_0", "gamma_1")
            unused = ("temperature", *thresholds) if self.form == "ntk" else ("strength",)
            refuse_unused(self, f"with form={self.form}", *unused)

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        if tested <= trained:
            return self.plain()
        assert time is not None, "DyPE is for sampling"
        kappa, stretch, d = time**self.options.exponent, tested / trained, self.axis_width
        if kappa < 1e-100 or d == 2:  # plain RoPE in any number format, and thresholds would be divided by zero
            return self.plain()
        if self.options.form == "ntk":
            return self.plain(self.rope_base * stretch ** (d / (d - 2) * self.options.strength * kappa))
        ntk = self.plain(self.rope_base * stretch ** (d / (d - 2)))
        return self.blend(self.plain(), ntk, trained, stretch, kappa)

    def attention_factor(self, stretch: float) -> float:
        return 1.0 if self.options.form == "ntk" else self.options.temperature * math.log(stretch) + 1
