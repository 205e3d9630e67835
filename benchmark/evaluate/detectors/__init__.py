"""Detectors: networks that map uint8 images to the features used for scores, behind one interface; and spectra.

A detector is called with uint8 [B, 3, H, W] and returns a dict of float32 tensors, as far as it has them:

    features   [B, D]   for FID, precision and recall, KID
    spatial    [B, S]   for sFID
    logits     [B, C]   for the inception score: without bias, as the field's evaluator takes them. A detector whose logits are
                        features times a matrix [C, D] has that as `head`, and cells keep no logits
    predicted  [B]      the most probable of the data set's classes
    objects    [B]      an estimate of the number of objects

A detector is one file of this folder: a subclass of Detector, and the constant FACTS, which protocols, plans and records read
without importing the file (`registry.DetectorFacts`).

Detectors stay outside Lightning modules: callbacks that average weights would copy them.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch

from benchmark import registry
from benchmark.evaluate.detectors.base import Detector
from benchmark.files import UserError
from benchmark.registry import WEIGHTS_VARIABLE

__all__ = ["Detector", "load"]


def load(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Detector:
    """A detector by name.

    Args:
        weights: path of its weight file. None: the file that the variable DETECTOR_WEIGHTS names, or else its own, which is
            shipped with the project (shapes, photos) or downloaded once. "random": see `Detector`.

    Raises:
        UserError: unknown name, or weights that are missing, damaged or of another network.
    """
    registry.detector_facts(name)  # refuses an unknown name
    module = importlib.import_module(f"{__name__}.{name}")
    (cls,) = (value for value in vars(module).values()
              if isinstance(value, type) and issubclass(value, Detector) and value.__module__ == module.__name__)  # fmt: skip
    if cls.name != name:  # by which the code behind features is found (identity.py)
        raise UserError(f"benchmark/evaluate/detectors/{name}.py: the name of its class must be '{name}', not '{cls.name}'")
    if not weights and os.environ.get(WEIGHTS_VARIABLE) == "random":  # which have no hash for a record to name
        raise UserError(f"{WEIGHTS_VARIABLE} is the path of a weight file; random weights are for --weights")
    weights = weights or os.environ.get(WEIGHTS_VARIABLE) or None  # as `registry.detector_weights` has it
    return cls(None if weights is None else str(weights), device)
