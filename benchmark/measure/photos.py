"""Measures what the photos detector notices: Frechet distances of artificially corrupted photographs.

    python -m benchmark.measure.photos DATA [--card imagenet-64] [--sizes 32x32 64x64] [--weights FILE] [--runs runs]

DATA has a training and a validation split, as for `python -m benchmark detector --name photos`; shards are kept below --runs. For
each size: up to 5,000 validation images, all corrupted alike, against as many training images. The detector is that of --weights
or of the environment variable DETECTOR_WEIGHTS, else the shipped one. No generative method has a part in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmark.data.batches import Batches, Transform
from benchmark.data.index import Index
from benchmark.evaluate import detectors, spoil
from benchmark.evaluate.detectors.base import Detector
from benchmark.evaluate.metrics import Moments, frechet_distance
from benchmark.evaluate.photos_training import CARD, SIZES, shards
from benchmark.files import exit_code
from benchmark.measure.detector import moments
from benchmark.model.autoencoder import to_uint8
from benchmark.protocol import size_hw

COUNT = 5000  # at most, of each split
CHUNK = 250  # images read and seen at once


def tiles(images: np.ndarray, share: float) -> np.ndarray:
    """A share of the tiles, a quarter of the short side wide, changes places."""
    return spoil.shuffled(images, share, _random(), min(images.shape[1:3]) // 4)


def mixed(images: np.ndarray, share: float) -> np.ndarray:
    """A weighted mean with another image."""
    return np.rint(images * (1 - share) + np.roll(images, 1, 0) * share).astype(np.uint8)


Corruption = Callable[[np.ndarray, float], np.ndarray]
WAYS: dict[str, tuple[tuple[float, ...], Corruption]] = {
    "blur, pixels": ((0.5, 1, 2, 4), spoil.blurred),
    "noise, grey levels": ((8, 16, 32, 64), lambda images, sigma: spoil.noisy(images, sigma, _random())),
    "share of tiles moved": ((0.25, 0.5, 1), tiles),
    "share of another image": ((0.25, 0.5), mixed),
}


def distances(seen: Index, held_out: Index, detector: Detector, size: str) -> Iterator[tuple[str, float, float]]:
    """Corruption, its strength (0 for none) and the distance, at one size."""
    count = min(COUNT, len(seen), len(held_out))
    count -= count % CHUNK if count > CHUNK else 0
    real = _moments(seen, detector, size, count)
    yield "none", 0.0, frechet_distance(_moments(held_out, detector, size, count), real)
    for name, (strengths, corrupt) in WAYS.items():
        for strength in strengths:
            found = _moments(held_out, detector, size, count, corrupt, strength)
            yield name, float(strength), frechet_distance(found, real)


def _moments(index: Index, detector: Detector, size: str, count: int,
             corrupt: Corruption | None = None, strength: float = 0.0) -> Moments:  # fmt: skip
    """Mean and covariance of the features of `count` images, corrupted or as they are."""
    batches = Batches(index, min(CHUNK, count), transform=Transform(size_hw(size), flip=False))
    parts = []
    for step in range(count // min(CHUNK, count)):
        images = to_uint8(batches[step]["image"])
        images = corrupt(images, strength) if corrupt else images
        parts.append(detector(torch.from_numpy(images).permute(0, 3, 1, 2))["features"].double())
    return moments(torch.cat(parts))


def _random() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(1))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.measure.photos", description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--card", default=CARD)
    parser.add_argument("--weights", help="of the detector")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where shards are kept")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW")
    given = parser.parse_args(arguments)

    def work() -> None:
        detector = detectors.load("photos", given.weights)
        seen, held_out = shards(given.data, given.runs, given.card)
        columns = [list(distances(seen, held_out, detector, size)) for size in given.sizes]
        shown = Table("corruption", "strength", *given.sizes, title="Fréchet distance from training images")
        for row in zip(*columns, strict=True):
            name, strength, _ = row[0]
            shown.add_row(name, f"{strength:g}" if strength else "", *(f"{distance:.2f}" for *_, distance in row))
        Console(width=None if sys.stdout.isatty() else 120).print(shown)

    return exit_code(work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
