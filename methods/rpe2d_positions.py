"""RPE-2D, positions only: random ordered positions without augmentation and without micro-conditioning.

An attribution row: what the positions of methods/rpe2d.py bring by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.rpe2d import RPE2D


class RPE2DPositions(RPE2D):
    title = "RPE-2D, positions only"

    @dataclass(frozen=True)
    class Options(RPE2D.Options):
        resize: float = 0.0
        micro_conditioning: bool = False
