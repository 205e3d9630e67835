"""Precision, recall and kernel distance against torch-fidelity and definitions; blocks that are read again and again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import mmd2
from torch_fidelity.metric_prc import prc_features_to_metric

from benchmark.evaluate.manifold import kernel_distance, precision_recall


def cloud(seed: int, count: int, width: int, shift: float = 0.0) -> torch.Tensor:
    """Features with unequal, correlated directions, float32 [count, width]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5 + 0.3 * torch.eye(width)
    return torch.randn(count, width, generator=generator) @ mix + shift


def shares(fake: torch.Tensor, real: torch.Tensor, block: int = 1000) -> list[float]:
    """[precision, recall]"""
    return [side.double().mean().item() for side in precision_recall(fake, real, block=block)]


def brute_precision_recall(fake: np.ndarray, real: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Definition by definition: a point counts if some ball of the other side's manifold holds it."""

    def share(points: np.ndarray, manifold: np.ndarray) -> float:
        inside = 0
        for point in points:
            for i, centre in enumerate(manifold):
                others = np.delete(manifold, i, axis=0)
                radius = np.sort(np.linalg.norm(others - centre, axis=1))[k - 1]
                if np.linalg.norm(point - centre) <= radius:
                    inside += 1
                    break
        return inside / len(points)

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize("block", [7, 1000])
def test_precision_recall_agrees(block):
    """Precision is of the samples and recall of the reference: sizes and clouds differ, so a swap would show."""
    fake, real = 0.5 * cloud(7, 60, 4), cloud(8, 45, 4, 0.4)
    ours = shares(fake, real, block)
    assert ours == pytest.approx(brute_precision_recall(fake.double().numpy(), real.double().numpy()))
    peer = prc_features_to_metric(fake, real, verbose=False, save_cpu_ram=False)
    assert ours == pytest.approx([peer["precision"], peer["recall"]])
    assert ours[0] > ours[1] + 0.1


def test_precision_recall_far_from_the_origin():
    """Expanded squares lose small distances of large features unless they are centred first."""
    fake, real = cloud(7, 60, 4), cloud(8, 45, 4, 0.4)
    assert shares(fake + 1000, real + 1000) == pytest.approx(shares(fake, real), abs=0.03)


def test_precision_recall_of_the_same_and_of_distant_images():
    x = cloud(9, 50, 6)
    assert shares(x, x) == [1, 1]
    assert shares(x + 100, x) == [0, 0]


@pytest.mark.parametrize("block", [7, 1000])
def test_kernel_distance_agrees_with_torch_fidelity(block):
    fake, real = cloud(10, 60, 16, 0.2), cloud(11, 60, 16)

    def kernel(x, y):
        return (x.double().numpy() @ y.double().numpy().T / 16 + 1) ** 3

    peer = mmd2(kernel(fake, fake), kernel(fake, real), kernel(real, real))
    assert kernel_distance(fake, real, block)[0] == pytest.approx(peer, rel=1e-9)
    assert kernel_distance(fake, real[:30])[0] > 0


class Ragged:
    """Features in blocks of unequal sizes, which are counted as they are read."""

    def __init__(self, features, sizes):
        self.parts, self.read = features.split(sizes), 0

    def __len__(self):
        return sum(map(len, self.parts))

    def blocks(self):
        start = 0
        for part in self.parts:
            self.read += 1
            yield start, part
            start += len(part)


def test_blocks_of_any_size_give_the_same():
    fake, real = 0.5 * cloud(7, 60, 4), cloud(8, 45, 4, 0.4)
    rows = Ragged(fake, [1, 20, 9, 30])
    for here, there in zip(precision_recall(rows, real, block=10), precision_recall(fake, real), strict=True):
        assert torch.equal(here, there)
    assert rows.read == 4 + 4 * 4 + 4  # the radii take every pair of blocks, the comparison with real images one pass
