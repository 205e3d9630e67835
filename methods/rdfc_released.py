"""RDFC as released: the band whose period is nearest the training grid gets 0.85 of a period on the test grid.

Source: the configuration of UltraImage's authors (thu-ml/DiT-Extrapolation, flux/base.yaml): on both axes theta_9 = 0.85 * 2 pi
/ L_test, where the paper's text (methods/rdfc.py) has the whole period. Number 9 is what the text's rule finds for FLUX, whose
axes have 28 bands at base 10000 and whose training size the paper gives as 2048 pixels, 128 tokens: its period is 121. The file
itself gives train_resolution 1024, 64 tokens, for which the rule finds band 7, and a constant L_test of 225. Their configuration
for Qwen-Image (qwen/base.yaml) stretches bands 8 and 9 as interpolation does: that is not this row.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Departure: its attention decay is no positional encoding and not part of this row.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.rdfc import RDFC


class RDFCReleased(RDFC):
    title = "RDFC (as released)"
    revision = 2  # the band is that of the text's rule

    @dataclass(frozen=True)
    class Options(RDFC.Options):
        share: float = 0.85
