"""LEDiT, convolution only: the convolution without causal attention.

An attribution row: what the zero-padded convolution of methods/ledit.py brings by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.ledit import LEDiT


class LEDiTConvolution(LEDiT):
    title = "LEDiT, convolution only"

    @dataclass(frozen=True)
    class Options(LEDiT.Options):
        causal: bool = False
