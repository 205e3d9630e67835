"""Time-aware scaled RoPE (Lumina-Next): interpolation near noise, a larger base near data.

Source: Zhuo et al. 2024, arXiv 2406.18583, in the form of the code Alpha-VLLM/Lumina-T2X, which differs from the paper's formula:
t < 0.3 with t = 0 noise, which is t > 0.7 here: theta / s; later: base s.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Departure: the code has one s, the square root of the areas' ratio; here every axis has its own. With a DDPM objective t is the
flow's time of the same signal-to-noise ratio, so that the change falls at level 426 of 1000.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.extrapolation import Extrapolation


class TASR(Extrapolation):
    title = "Time-aware RoPE"
    paper = "2406.18583"
    year = 2024
    revision = 2  # under DDPM: the time of equal signal-to-noise ratio
    trains_as = "extrapolation"
    timed = True

    @dataclass(frozen=True)
    class Options:
        watershed: float = 0.7  # noise level above which positions are interpolated

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        if tested <= trained:
            return self.plain()
        assert time is not None, "time-aware RoPE is for sampling"
        stretch = tested / trained
        return self.plain() / stretch if time > self.options.watershed else self.plain(self.rope_base * stretch)
