"""The small detector of photographs; its network is benchmark/evaluate/photos.py, its training photos_training.py."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.evaluate import photos
from benchmark.evaluate.detectors.base import Detector
from benchmark.evaluate.detectors.weights import RANDOM, state_hash, untrained
from benchmark.files import file_hash

FACTS = {"flops": 88.2e6, "numbers": 356, "classes": 100, "weights": "photos.safetensors"}
# Operations at 64 x 64; 128 features, 128 spatial ones, 100 logits (of the shipped file)


class PhotosDetector(Detector):
    """A small classifier of photographs. The shipped one's classes are the card imagenet-64's: it names none of other sets."""

    name = "photos"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        if weights == RANDOM:
            with untrained():
                self.network = photos.Photos().eval().requires_grad_(False).to(device)
            self.hash = state_hash(self.network)
        else:
            self.network = photos.load(weights or photos.WEIGHTS, device)
            self.hash = file_hash(weights or photos.WEIGHTS)[:12]
        self.widths = {
            "features": photos.FEATURES,
            "spatial": photos.SPATIAL_CHANNELS * photos.SPATIAL_GRID**2,
            "logits": self.network.head.out_features,
        }

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        found = dict(self.network(images))
        found["logits"] = found["logits"] - self.network.head.bias
        return found
