"""Detectors: networks that turn uint8 images into the features that scores are made of, behind one interface; and spectra.

A detector is called with uint8 [B, 3, H, W] and returns a dict of float32 tensors, as far as it has them:

    features   [B, D]   for FID, precision and recall, KID
    spatial    [B, S]   for sFID
    logits     [B, C]   for the inception score: without bias, as the field's evaluator takes them
    predicted  [B]      the class it sees, as a number of the data set's classes
    objects    [B]      how many objects it sees

Detectors stay outside Lightning modules: callbacks that average weights would copy them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from benchmark.evaluate.detectors.base import Detector
from benchmark.files import unknown

__all__ = ["Detector", "load", "names"]

SHARED = ("base", "weights")  # files of this folder that are no detectors


def names() -> list[str]:
    """The detectors there are: the files of this folder."""
    found = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in found if name not in SHARED and not name.startswith("_"))


def load(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Detector:
    """A detector by name.

    Args:
        weights: path of its weight file. None: its own, which is shipped with the project (shapes), or else the file that the
            variable DETECTOR_WEIGHTS names, or else one that is downloaded once. "random": see `Detector`.

    Raises:
        UserError: unknown name, or weights that are missing, damaged or of another network.
    """
    if name not in names():
        raise unknown("detector", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    (cls,) = (value for value in vars(module).values()
              if isinstance(value, type) and issubclass(value, Detector) and value.__module__ == module.__name__)  # fmt: skip
    return cls(None if weights is None else str(weights), device)
