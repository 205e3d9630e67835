"""NTK-aware scaling: a larger base, so that high frequencies stay and the lowest is interpolated.

Source: bloc97 2023 as in the YaRN paper (Peng et al., arXiv 2309.00071, section 3.1): base' = base s^(d / (d - 2)), per axis with
that axis' width d ("VisionNTK" of FiT, mode `ntk-aware`). Ends of the spectrum: j = 0 is unchanged, the last j is divided by
exactly s.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
"""

from __future__ import annotations

from torch import Tensor

from methods.extrapolation import Extrapolation


class NTK(Extrapolation):
    title = "NTK"
    paper = "2309.00071"
    year = 2023
    trains_as = "extrapolation"

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        stretch = max(tested / trained, 1)
        d = self.axis_width
        if d == 2:  # a single frequency is both the first and the last: like j = 0, it stays
            return self.plain()
        return self.plain(self.rope_base * stretch ** (d / (d - 2)))
