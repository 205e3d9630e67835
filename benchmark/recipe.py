"""What the stages do to numbers besides method, core and reader: averaging, precision, a training's batches, latents, bytes.

It is kept apart from train.py and sample.py, which run things: how a training is saved, stopped or told about changes no
result, and so no record goes stale over it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmark import data, shards
from benchmark.files import UserError
from benchmark.method import Method
from benchmark.protocol import Protocol, size_hw

PASS = 8  # pictures that the autoencoder sees at once: its activations are large


def averaging(protocol: Protocol) -> WeightAveraging:
    """The moving average of the weights, which is what is sampled from."""
    return WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(protocol.train.ema))


def has_bf16() -> bool:
    """Whether this machine multiplies in bfloat16: a GPU since Ampere, or a processor with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    if torch.backends.mps.is_available():
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()


def precision(wanted: str) -> str:
    """Lightning's name of what the protocol asks for, as far as this machine has it."""
    return "bf16-mixed" if wanted == "bf16" and has_bf16() else "32-true"


@contextlib.contextmanager
def autocast(wanted: str, device: torch.device) -> Iterator[None]:
    """bfloat16 autocast where the protocol asks for it and the machine has it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(wanted) == "bf16-mixed"):
        yield


# --- Training --------------------------------------------------------------------------------------------------------


class Reader:
    """The training batches from a step on, made once the trainer knows this process' rank. Lightning iterates it once.

    Args:
        workers: processes that decode, a rank; the batches are the same for any number.
    """

    def __init__(self, method: Method, index: data.Index, start: int, workers: int) -> None:
        self.method, self.index, self.start, self.workers = method, index, start, workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        method, trainer = self.method, self.method.trainer
        config = method.protocol.train
        transform = None
        if self.index.kind != "latents":
            augmentation, options = method.augmentation
            transform = data.Transform(size_hw(method.train_size), augmentation, flip=config.flip, options=options)
        batches = data.Batches(
            self.index,
            config.batch,
            method.seed,
            trainer.global_rank,
            trainer.world_size,
            transform,
            flip=config.flip,
            on_corrupt=method.protocol.data.on_corrupt,
        )
        options = {"worker_init_fn": ignore_signals, "pin_memory": method.device.type == "cuda"}
        return iter(batches.loader(self.start, config.steps, workers=self.workers, **options))


def ignore_signals(worker: int) -> None:
    """A terminal and SLURM signal the whole group; a worker that decodes lives on until the main process has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Encoder:
    """A batch of pictures -> the batch of their latents, on the batch's device.

    For methods whose augmentation latents of whole pictures have not seen. The numbers are those that `shards.latents`
    stores, float16 included, so that where a picture was encoded makes no difference.

    Args:
        autoencoder: a name on the Hugging Face hub, or a folder.
    """

    def __init__(self, autoencoder: str) -> None:
        self.autoencoder = autoencoder

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["image"]
        model = shards.load_autoencoder(self.autoencoder, str(images.device))
        with torch.autocast(images.device.type, enabled=False):
            posteriors = [model.encode(part.float()).latent_dist for part in images.split(PASS)]
        mean, std = (torch.cat([getattr(p, name) for p in posteriors]).half().float() for name in ("mean", "std"))
        scale, shift = latent_range(model)
        return batch | {"image": (mean - shift) * scale, "std": std * scale}


def latent_range(autoencoder: Any) -> tuple[float, float]:
    """(scale, shift): the model sees (latent - shift) * scale."""
    return autoencoder.config.scaling_factor, autoencoder.config.shift_factor or 0.0


# --- Sampling --------------------------------------------------------------------------------------------------------


def decoder(protocol: Protocol, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The map from what the core draws to pictures [B, 3, H, W] in about [-1, 1]: the card's autoencoder, or nothing."""
    if protocol.data.representation == "pixels":
        return lambda x: x
    model = shards.load_autoencoder(shards.autoencoder_of(data.card(protocol.data.card)), str(device))
    scale, shift = latent_range(model)

    def decode(latents: Tensor) -> Tensor:
        # One picture at a time: the decoder's activations at 1024 pixels fill a device.
        with torch.autocast(device.type, enabled=False):
            return torch.cat([model.decode(one[None] / scale + shift).sample for one in latents.float()])

    return decode


def to_uint8(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in about [-1, 1] -> uint8 [B, H, W, 3]: trunc(127.5 x + 128), clamped (DiT, the evaluator's rule)."""
    if not torch.isfinite(images).all():
        raise UserError("the model drew values that are not numbers; its training may have diverged")
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
