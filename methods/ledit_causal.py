"""LEDiT, causal only: the causal layer without the convolution.

An attribution row: what the causal attention of methods/ledit.py brings by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.ledit import LEDiT


class LEDiTCausal(LEDiT):
    title = "LEDiT, causal only"

    @dataclass(frozen=True)
    class Options(LEDiT.Options):
        convolution: bool = False
