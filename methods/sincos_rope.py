"""Sin-cos and RoPE together: DiT's table added to the tokens, and axial RoPE in every block.

Source: LightningDiT (Yao et al. 2025, arXiv 2501.01423; hustvl/LightningDiT) and JiT (Li and He 2025), whose cores have both:
absolute positions once, relative ones in attention. The parts are those of methods/sincos.py and methods/extrapolation.py.

Training: own. At another grid: both run on.
Departure: LightningDiT also changes the blocks (SwiGLU, RMSNorm); here the core is that of all rows.
"""

from __future__ import annotations

import dataclasses

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, sincos_table, token_yx
from methods.extrapolation import Extrapolation


class SinCosRoPE(Extrapolation):
    title = "Sin-cos and RoPE"
    paper = "2501.01423"
    year = 2025

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        turned = super().encode(grid_hw, time=time, draws=draws)
        return dataclasses.replace(turned, add=sincos_table(*token_yx(grid_hw, self.device), self.protocol.core.width))
