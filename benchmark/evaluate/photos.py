"""The network of the photos detector: features, spatial features and logits of photographs, at any size from 16 pixels on.

Pictures are first brought to a short side of 64 pixels. The features are averages of activations without upper bound, made of
the deep map and of the one before it, and the network has learnt to say how blurred, noisy or disordered a picture is beside
its class (photos_training.py): so a Frechet distance between features grows where pictures get worse, and 128 of them need
some thousand pictures, where Inception's 2048 need 50,000.

Shapes: B batch, (h, w) pixels, (m, n) cells of the middle map, F = 128 features, S = 128 spatial features, C classes: 100 in the
shipped file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmark.evaluate import classifier
from benchmark.evaluate.classifier import filled, layer
from benchmark.files import UserError

WEIGHTS = Path(__file__).parent / "photos.safetensors"
CLASSES, FEATURES, SPATIAL_CHANNELS, SPATIAL_GRID = 100, 128, 8, 4
SHORT_SIDE = 64  # pixels, of what the network sees
SIDE_MIN = 16
DEEP = FEATURES - 32  # of the features, those from the last map; the others are from the one before it


class Photos(nn.Module):
    """uint8 pictures -> features, spatial features and logits."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.middle = nn.Sequential(
            layer(3, 32, 3, 2), layer(32, 64, 3, 2), Residual(64), layer(64, 128, 3, 2), Residual(128)
        )  # fmt: skip
        self.deep = nn.Sequential(layer(128, 256, 3, 2), Residual(256))
        self.shallow_neck, self.deep_neck = layer(128, FEATURES - DEEP, 1, 1), layer(256, DEEP, 1, 1)
        self.layout = nn.Conv2d(128, SPATIAL_CHANNELS, 1)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What is seen in pictures.

        Args:
            images: uint8 [B, 3, h, w], RGB, any size from 16 x 16.

        Returns:
            features [B, F]; spatial [B, S], a 4 x 4 grid of 8 channels; logits [B, C].

        Raises:
            UserError: pictures of another type, layout or too small.
        """
        middle = self.look(images)
        features = self.features(middle)
        spatial = F.adaptive_avg_pool2d(self.layout(middle), SPATIAL_GRID).flatten(1)
        return {"features": features, "spatial": spatial, "logits": self.head(features)}

    def features(self, middle: Tensor) -> Tensor:
        """[B, 128, m, n] -> [B, F]."""
        return torch.cat([self.shallow_neck(middle).mean((2, 3)), self.deep_neck(self.deep(middle)).mean((2, 3))], 1)

    def look(self, images: Tensor, side: int = SHORT_SIDE) -> Tensor:
        """The middle map: uint8 [B, 3, h, w] -> [B, 128, m, n], `side` / 8 cells on the short side."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"the photos detector takes uint8 [B, 3, h, w], not {images.dtype} {list(images.shape)}")
        height, width = images.shape[-2:]
        if min(height, width) < SIDE_MIN:
            raise UserError(f"the photos detector needs at least {SIDE_MIN} pixels per side, not {height}x{width}")
        x = images.to(self.head.weight.dtype) / 127.5 - 1
        short = min(height, width)
        target = tuple(round(length * side / short) for length in (height, width))
        if target != (height, width):
            x = F.interpolate(x, target, mode="bilinear", align_corners=False, antialias=True)
        return self.middle(x.contiguous(memory_format=torch.channels_last))


class Residual(nn.Module):
    """x + a layer of the same width (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = layer(width, width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def load(path: Path | str = WEIGHTS, device: torch.device | str = "cpu") -> Photos:
    """The network with its weights, ready to use.

    Raises:
        UserError: the file is not there, or is not the weights of this network.
    """
    return filled(Photos(_classes_of(path)), path, device, "photos", "`python -m benchmark detector --name photos`")


def _classes_of(path: Path | str) -> int:
    """The classes of a weight file; those of the shipped one where it is none, of which `filled` says so."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.get_slice("head.weight").get_shape()[0])
    except (SafetensorError, OSError):
        return CLASSES


def stated(path: Path | str = WEIGHTS) -> dict:
    """What the weights' file says of itself: the command that made it, and its accuracy at each size."""
    return classifier.stated(path)
