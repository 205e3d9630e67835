"""RDFC as released: one fixed band, slower than the training grid, gets 0.85 of a period on the test grid.

Source: the configuration of UltraImage's authors (thu-ml/DiT-Extrapolation, flux/base.yaml): on both axes theta_9 = 0.85 * 2 pi
/ L_test, where the paper's text (methods/rdfc.py) has the band nearest the training grid and the whole period. Their
configuration for Qwen-Image (qwen/base.yaml) stretches bands 8 and 9 as interpolation does: that is not this row.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Our reading: number 9 belongs to FLUX, whose axes have 28 bands at base 10000 and which was trained at 64 tokens: that band's
period is 121 tokens, 1.9 training grids, where the text's rule would find number 7. On another core the band with that period
is taken (option `period`); number 9 itself can be had with option `band`. Its attention decay is no positional encoding and not
part of this row.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.rdfc import RDFC


class RDFCReleased(RDFC):
    title = "RDFC (as released)"

    @dataclass(frozen=True)
    class Options(RDFC.Options):
        share: float = 0.85
        period: float = 1.895  # 2 pi 10000^(9 / 28) / 64
