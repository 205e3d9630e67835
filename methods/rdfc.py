"""RDFC: the band whose period is nearest the training grid gets the test grid as its period.

Source: UltraImage (Zhao et al. 2025, arXiv 2512.04504), eqs. 6 and 8: k = argmin_j |2 pi / theta_j - L| as in RIFLEx,
theta_k <= 2 pi / L_test, per axis. The authors' released configuration has another share: methods/rdfc_released.py.

Training: plain RoPE (Extrapolation's checkpoint). At a smaller grid: plain RoPE.
Departure: the paper's algorithm 1 goes on with the period of whatever repetition is still seen in samples, where there is one;
here is its first round alone, in which that period is the training grid. Its attention concentration is no positional encoding
and not part of this row.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.rifle import RIFLEx


class RDFC(RIFLEx):
    title = "RDFC (UltraImage)"
    paper = "2512.04504"
    year = 2025
    revision = 2  # a band that is slow enough stays

    @dataclass(frozen=True)
    class Options(RIFLEx.Options):
        share: float = 1.0
