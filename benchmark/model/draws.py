"""The random numbers of a training step and of a generated image, as tensors; the streams are those of benchmark/streams.py."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.streams import HELDOUT, IMAGES, TRAINING, mixed_seed


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image `index`: its noise depends on the seed and the index alone, on the CPU."""
    return torch.Generator().manual_seed(mixed_seed(IMAGES, seed, index))


def heldout_generator(index: int, level: int) -> torch.Generator:
    """The generator of held-out image `index` at noise level `level`, on the CPU: the same for every method and training."""
    return torch.Generator().manual_seed(mixed_seed(HELDOUT, index, level))


class Draws:
    """The random numbers of one training step, a function of (seed, step) alone.

    They are drawn on the CPU for the global batch and cut to this rank's rows, so any number of devices trains on the same
    numbers, and a resumed run on the same as an uninterrupted one.

    Args:
        seed: of the run.
        step: global step.
        rows: (first row, rows of the global batch) of this rank's slice, which holds `count` rows.
        device: of the tensors.
        purpose: the stream, one of those of benchmark/streams.py.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        rows: tuple[int, int],
        count: int,
        device: torch.device | str = "cpu",
        purpose: int = TRAINING,
    ) -> None:
        self.generator = torch.Generator().manual_seed(mixed_seed(purpose, seed, step))
        self.first, self.total = rows
        self.count, self.device = count, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal [B, *shape]."""
        return self._cut(torch.randn(self.total, *shape, generator=self.generator))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), [B, *shape]."""
        return self._cut(torch.rand(self.total, *shape, generator=self.generator))

    def once(self) -> float:
        """One uniform number in [0, 1) for the global batch."""
        return float(torch.rand((), generator=self.generator))

    def subsets(self, size: int, of: int) -> Tensor:
        """For every row, `size` distinct integers out of 0 .. of - 1, ascending, every subset equally likely: int64 [B, size]."""
        order = torch.rand(self.total, of, generator=self.generator, dtype=torch.float64).argsort(dim=1)
        return self._cut(order[:, :size].sort(dim=1).values)

    def _cut(self, values: Tensor) -> Tensor:
        own = values[self.first : self.first + self.count]
        if torch.device(self.device).type == "cuda":  # from page-locked memory, the step need not wait for the copy
            return own.pin_memory().to(self.device, non_blocking=True)
        return own.to(self.device)
