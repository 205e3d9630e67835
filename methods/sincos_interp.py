"""Sin-cos, interpolated: DiT's fixed table at positions squeezed into the trained range.

As position interpolation (Chen et al. 2023, arXiv 2306.15595, eq. 4), on the table of methods/sincos.py: positions / s on each
axis, s = max(test grid / L, 1).

Training: sin-cos (its checkpoint). At a smaller grid: sin-cos.
"""

from __future__ import annotations

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, sincos_table, token_yx
from methods.sincos import SinCos


class SinCosInterpolated(SinCos):
    title = "Sin-cos, interpolated"
    paper = "2306.15595"
    year = 2023
    trains_as = "sincos"

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        stretch = (max(tested / trained, 1) for tested, trained in zip(grid_hw, self.train_grid, strict=True))
        y, x = (position / s for position, s in zip(token_yx(grid_hw, self.device), stretch, strict=True))
        return Encoding(add=sincos_table(y, x, self.protocol.core.width))
