"""The detector of the embedded data set; its network and training are benchmark/evaluate/classifier.py."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.evaluate import classifier
from benchmark.evaluate.detectors.base import Detector
from benchmark.evaluate.detectors.weights import RANDOM, state_hash, untrained
from benchmark.files import file_hash

FACTS = {"flops": 48.7e6, "numbers": 202, "classes": 8, "weights": "shapes.safetensors"}
# Operations at 64 x 64; 64 features, 128 spatial ones, 8 logits, class and count


class Shapes(Detector):
    """The classifier of the embedded data set; knows the classes and the number of objects."""

    name = "shapes"

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        if weights == RANDOM:
            with untrained():
                self.network = classifier.Classifier().eval().requires_grad_(False).to(device)
            self.hash = state_hash(self.network)
        else:
            self.network = classifier.load(weights or classifier.WEIGHTS, device)
            self.hash = file_hash(weights or classifier.WEIGHTS)[:12]
        with torch.inference_mode():
            outputs = self.outputs(torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device=self.device))
        self.widths = {name: value.shape[1] if value.ndim == 2 else 0 for name, value in outputs.items()}

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        outputs = dict(self.network(images))
        outputs["predicted"] = outputs["logits"].argmax(dim=1)
        outputs["logits"] = outputs["logits"] - self.network.head.bias
        return outputs
