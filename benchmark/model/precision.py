"""Averaged weights, and the numeric format of a training or a cell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmark.protocol import Precision, Protocol


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Without autocast: positions in bfloat16 would be rounded to eight bits."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Averaging(WeightAveraging):
    """Lightning's average of the weights, updated without waiting for a GPU.

    The average lies where the weights lie. The number of updates stays on the processor: torch looks at it twice in every step,
    and on a GPU each look waits for all that the GPU has yet to do.
    """

    @property
    def state_key(self) -> str:
        return WeightAveraging.__qualname__  # so that older checkpoints still load

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        average = self._average_model
        average.module.to(module.device)
        average.n_averaged = average.n_averaged.cpu()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        average = self._average_model
        if trainer.global_step <= self._latest_update_step:
            return
        if average.n_averaged == 0:
            average.update_parameters(module)  # copies them
        else:  # as torch does it, but for the number of updates, which it would copy to the GPU and the function ignores
            average.multi_avg_fn(_values(average.module), _values(module), average.n_averaged)
            average.n_averaged += 1
        self._latest_update_step = trainer.global_step


def _values(module: nn.Module) -> list[Tensor]:
    return [value.detach() for value in (*module.parameters(), *module.buffers())]


def averaging(protocol: Protocol) -> Averaging:
    """The moving average of the weights, which is what is sampled from."""
    return Averaging(multi_avg_fn=get_ema_multi_avg_fn(protocol.train.ema))


def has_bf16() -> bool:
    """Whether this machine multiplies in bfloat16: a GPU since Ampere, or a processor with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)  # older ones only emulate it
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()


def effective(wanted: Precision) -> Precision:
    """What the protocol asks for as far as this machine has it, else float32."""
    return "bf16" if wanted == "bf16" and has_bf16() else "float32"


def precision(wanted: Precision) -> Literal["bf16-mixed", "32-true"]:
    """Lightning's name of the effective format."""
    return "bf16-mixed" if effective(wanted) == "bf16" else "32-true"


@contextlib.contextmanager
def autocast(wanted: Precision, device: torch.device) -> Iterator[None]:
    """bfloat16 autocast where the protocol asks for it and the machine has it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=effective(wanted) == "bf16"):
        yield
