"""The autoencoder between pictures and a latent model, and how what a model generates becomes pictures."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.files import UserError

PASS = 8  # pictures that the autoencoder sees at once: its activations are large


@functools.cache
def load_autoencoder(name: str, device: str) -> Any:
    """diffusers' AutoencoderKL for inference, in float32."""
    from diffusers import AutoencoderKL  # takes seconds, which trainings on pixels need not spend

    try:
        model = AutoencoderKL.from_pretrained(name, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"autoencoder '{name}' cannot be loaded: give a folder or a name on the hub ({reason})") from None
    return model.to(device).eval().requires_grad_(False)


@functools.cache
def autoencoder_identity(name: str) -> tuple[dict[str, Any], str]:
    """(configuration, hash of configuration and weights)."""
    model = load_autoencoder(name, "cpu")
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    summary = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        summary.update(key.encode() + value.numpy().tobytes())
    return config, summary.hexdigest()[:12]


class Autoencoder:
    """A batch of pictures -> the batch of their latents, on the batch's device.

    For methods that augment pictures: latents written beforehand are of unaugmented ones. The numbers are those that stored
    latents have, float16 included, so that where a picture was encoded makes no difference.

    Args:
        autoencoder: a name on the Hugging Face hub, or a folder.
    """

    def __init__(self, autoencoder: str) -> None:
        self.autoencoder = autoencoder

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["image"]
        model = load_autoencoder(self.autoencoder, str(images.device))
        with torch.autocast(images.device.type, enabled=False):
            posteriors = [model.encode(part.float()).latent_dist for part in images.split(PASS)]
        mean, std = (torch.cat([getattr(p, name) for p in posteriors]).half().float() for name in ("mean", "std"))
        scale, shift = latent_range(model.config)
        return batch | {"image": (mean - shift) * scale, "std": std * scale}


def latent_range(config: Mapping[str, Any]) -> tuple[float, float]:
    """(scale, shift) by an autoencoder's configuration: the model sees (latent - shift) * scale."""
    return config["scaling_factor"], config["shift_factor"] or 0.0


def decoder(autoencoder: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The map from what the core generates to pictures [B, 3, H, W] in about [-1, 1]; the identity if `autoencoder` is empty."""
    if not autoencoder:
        return lambda x: x
    model = load_autoencoder(autoencoder, str(device))
    scale, shift = latent_range(model.config)

    def decode(latents: Tensor) -> Tensor:
        # One picture at a time: the decoder's activations at 1024 pixels fill a device.
        with torch.autocast(device.type, enabled=False):
            return torch.cat([model.decode(one[None] / scale + shift).sample for one in latents.float()])

    return decode


def to_uint8(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in about [-1, 1] -> uint8 [B, H, W, 3]: trunc(127.5 x + 128), clamped (DiT, the evaluator's rule)."""
    if not torch.isfinite(images).all():
        raise UserError("the model generated values that are not numbers; its training may have diverged")
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
