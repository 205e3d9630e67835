"""The interface of all detectors: a network called with uint8 images, in exact float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.evaluate.spectrum import log_spectrum
from benchmark.files import UserError


class Detector:
    """What all detectors share; subclasses fill `network` and `widths` and answer `outputs`.

    Args:
        weights: path of a weight file; None takes the detector's own (see `find_weights`), "random" none at all.
        device: where the network runs. Results come back on the same device.
    """

    name: str
    widths: dict[str, int]  # output -> width; 0 for one number per image
    network: nn.Module
    hash: str  # the first 12 hexadecimal digits of the SHA-256 of the weights
    head: Tensor | None = None  # [C, D], where logits are features times it: then they are not stored

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        raise NotImplementedError

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for checked images [B, 3, H, W] on the detector's device."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs for uint8 images [B, 3, H, W].

        Raises:
            UserError: images are not uint8, not [B, 3, H, W], or there are none.
        """
        if images.dtype != torch.uint8:
            raise UserError(f"detectors take uint8 images (0 to 255), not {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            hint = ": that is NHWC, permute it" if images.ndim == 4 and images.shape[3] == 3 else ""
            raise UserError(f"detectors take images as [B, 3, H, W], not {list(images.shape)}{hint}")
        if not len(images):
            raise UserError("there are no images in this batch")
        with exact_float32():
            outputs = self.outputs(images.to(self.device))
        assert outputs.keys() == self.widths.keys(), (outputs.keys(), self.widths)
        return {name: value.float() for name, value in outputs.items()}


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Turns off TF32 and automatic mixed precision: both move features by about 1e-3."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    cudnn = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def outputs_of(images: np.ndarray, detector: Detector, batch: int = 64) -> dict[str, np.ndarray]:
    """The detector's outputs for uint8 images [n, H, W, 3], and their log spectra ("spectrum"); float32, on the CPU."""
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), batch):
        tensor = torch.from_numpy(np.array(images[start : start + batch])).permute(0, 3, 1, 2).to(detector.device)
        outputs = detector(tensor) | {"spectrum": log_spectrum(tensor)}
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def at_rest(outputs: dict[str, np.ndarray], detector: Detector, half: bool) -> dict[str, np.ndarray]:
    """What stays on disk of a detector's outputs: no logits that its head computes from the features; float16 with `half`."""
    made = {"logits"} if detector.head is not None else set()
    kept = {name: value for name, value in outputs.items() if name not in made}
    return {name: value.astype(np.float16) if half and value.ndim == 2 else value for name, value in kept.items()}
