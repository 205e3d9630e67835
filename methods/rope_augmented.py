"""Plain RoPE with RPE-2D's augmentation and micro-conditioning: what these bring without random positions.

An attribution row for methods/rpe2d.py (arXiv 2503.18719): positions are those of plain RoPE, in training and, extrapolated, at
test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from methods.extrapolation import Extrapolation
from methods.rpe2d import MicroConditioner, augmentation, check_augmentation


class RoPEAugmented(Extrapolation):
    title = "RoPE, augmented"
    augments = "resize"
    revision = 2
    paper = "2503.18719"
    year = 2025
    note = "the augmentation of RPE-2D, reimplemented from the abstract"

    @dataclass(frozen=True)
    class Options:
        resize: float = 1.5  # k: the short side is resized to a random length in [S, k S]; 0 turns it off
        uncropped: float = 0.5  # probability that a training image is not augmented

        def __post_init__(self) -> None:
            check_augmentation("rope_augmented", self)

    def build(self) -> None:
        self.conditioner = MicroConditioner(self.protocol.core.width, relative=True)

    @classmethod
    def augmentation_of(cls, options: Any) -> tuple[str, dict[str, Any]]:
        return augmentation(options) or super().augmentation_of(options)
