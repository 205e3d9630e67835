"""Sin-cos: DiT's fixed table added to the tokens, extrapolated to any grid: DiT's own baseline.

Source: Peebles and Xie 2023 (DiT, arXiv 2212.09748), the table of MAE: the first half of the channels encodes the column, each
half is [sin | cos] with omega_k = 10000^(-k / (D / 4)). Positions are 0 .. grid - 1.

Training: own. At another grid: the same formula at the larger positions.
"""

from __future__ import annotations

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, sincos_table, token_yx
from benchmark.model.method import Method


class SinCos(Method):
    title = "Sin-cos"
    paper = "2212.09748"
    year = 2022

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        y, x = token_yx(grid_hw, self.device)
        return Encoding(add=sincos_table(y, x, self.protocol.core.width))
