"""Measures what the detector of the embedded data set notices: Frechet distances of artificially corrupted real scenes.

    python -m benchmark.measure.detector [--weights FILE]

No generative method has a part in it. N = 500 held-out scenes, all spoiled alike, against 2,000 scenes of the reference split
rendered natively at the size, as a protocol scores samples. Prints one row per failure and a verdict on every clause:

(a) every failure of structure is at least half as far as the empty ground, and 20 times as far as real scenes;
(b) distances grow with the strength of a failure, and with the share of pictures that have it. A fall by less than 0.01 is shown
    as NEAR and does not fail: the distance of real scenes has a standard deviation of 0.005 to 0.006 over other sets of 500, and
    noise of 4 grey levels is not told from none;
(c) real scenes are within 0.3 at their own size, at every size, and recognised as well as by the first version;
(d) no demand: failures that training did not show, at the end of the table.

Exits with 1 where a clause fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmark.data import shapes
from benchmark.evaluate import classifier, spoil
from benchmark.evaluate.metrics import Moments, frechet_distance
from benchmark.protocol import size_name

N, REFERENCE = 500, 2000
INDEX = np.arange(N)
SIZES = ((48, 48), (64, 64), (64, 48), (48, 64))
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # standard deviation, pixels
NOISES = (0.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0)  # standard deviation, grey levels
RESOLUTION = 0.01  # of FID at N = 500, see (b)
FIRST_VERSION_TOP1 = 1.0  # at every size, on the 2,000 held-out scenes of `classifier.measure`

Size = tuple[int, int]


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(1))


def whole(size: Size) -> np.ndarray:
    return shapes.render_batch("heldout", INDEX, size)


def others(size: Size) -> np.ndarray:
    """Another scene for each, of the next class."""
    return shapes.render_batch("heldout", INDEX + 1, size)


def quarters(size: Size, which) -> np.ndarray:
    return spoil.quarters("heldout", INDEX, size, which)


def placed(size: Size, scale: float, shift_yx) -> np.ndarray:
    return spoil.placed("heldout", INDEX, size, scale, shift_yx)


REAL, EMPTY = "as it should be", "no object"
# What (a) demands.
STRUCTURE: dict[str, Callable[[Size], np.ndarray]] = {
    "half size, once, in the first corner": lambda size: quarters(size, [[0]] * N),
    "half size, once, in any corner": lambda size: quarters(size, INDEX[:, None] // 8 % 4),
    "half size, four times": lambda size: spoil.tiled("heldout", INDEX, size),
    "all blocks of 16x16 shuffled": lambda size: spoil.shuffled(whole(size), 1, rng()),
    "left and right halves swapped": lambda size: spoil.swapped(whole(size), 1),
    "top and bottom halves swapped": lambda size: spoil.swapped(whole(size), 0),
    "left and right halves of two scenes": lambda size: spoil.joined(whole(size), others(size), 1),
    "top and bottom halves of two scenes": lambda size: spoil.joined(whole(size), others(size), 0),
    EMPTY: lambda size: spoil.empty("heldout", INDEX, size),
}
TRAINED: dict[str, Callable[[Size], np.ndarray]] = {
    "half size, in its place": lambda size: placed(size, 0.5, (0, 0)),
    "1.5 times as large": lambda size: placed(size, 1.5, (0, 0)),
    "object shifted right by a quarter": lambda size: placed(size, 1, (0, 0.25)),
    "two copies, left and right": lambda size: spoil.tiled("heldout", INDEX, size, (1, 2)),
    "four small objects, rendered so": lambda size: shapes.render_batch("heldout", INDEX, size, 4),
}
UNTRAINED: dict[str, Callable[[Size], np.ndarray]] = {
    "half size, three times": lambda size: quarters(size, [[0, 1, 2]] * N),
    "half size, twice, in opposite corners": lambda size: quarters(size, [[0, 3]] * N),
    "half size, nine times, the outer ones cut": lambda size: np.roll(
        spoil.tiled("heldout", INDEX, size), (size[0] // 4, size[1] // 4), (1, 2)),
    "0.7 times as large": lambda size: placed(size, 0.7, (0, 0)),
    "rolled right by a quarter, round the edge": lambda size: spoil.swapped(whole(size), 1, -0.25),
    "rolled down by a quarter, round the edge": lambda size: spoil.swapped(whole(size), 0, -0.25),
    "left half mirrored to the right": lambda size: spoil.mirrored(whole(size), 1),
    "top half mirrored to the bottom": lambda size: spoil.mirrored(whole(size), 0),
    "upside down": lambda size: np.ascontiguousarray(whole(size)[:, ::-1]),
    "all blocks of 8x8 shuffled": lambda size: spoil.shuffled(whole(size), 1, rng(), 8),
    "quarters of four scenes": lambda size: spoil.joined(
        spoil.joined(whole(size), others(size), 1), spoil.joined(np.roll(whole(size), 3, 0), np.roll(whole(size), 5, 0), 1), 0),
    "stripes of 4 rows from two scenes": lambda size: np.where(
        (np.arange(size[0]) // 4 % 2 == 0)[None, :, None, None], whole(size), others(size)),
    "rows of 16 pixels shifted by 8": lambda size: np.concatenate(
        [np.roll(part, 8 * (k % 2), 2) for k, part in enumerate(np.split(whole(size), size[0] // 16, 1))], 1),
    "grey": lambda size: np.repeat(whole(size).mean(3, keepdims=True).astype(np.uint8), 3, 3),
}  # fmt: skip


STRENGTHS: dict[str, tuple[tuple[float, ...], Callable[[Size, float], np.ndarray]]] = {
    "share of blocks of 16x16 shuffled": (SHARES, lambda size, share: spoil.shuffled(whole(size), share, rng())),
    "blur, pixels": (BLURS, lambda size, sigma: spoil.blurred(whole(size), sigma)),
    "noise, grey levels": (NOISES, lambda size, sigma: spoil.noisy(whole(size), sigma, rng())),
}


class Scorer:
    """The detector at one size: features, and their distances to that size's reference."""

    def __init__(self, model: classifier.Classifier, size: Size):
        self.model, self.size = model, size
        chunks = [self.features(shapes.render_batch("reference", range(start, start + N), size))
                  for start in range(0, REFERENCE, N)]  # fmt: skip
        self.reference = [moments(torch.cat(parts)) for parts in zip(*chunks, strict=True)]

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and spatial features, float64."""
        outputs = [self.model(part.permute(0, 3, 1, 2)) for part in torch.from_numpy(images).split(100)]
        return tuple(torch.cat([part[name] for part in outputs]).double() for name in ("features", "spatial"))

    def distances(self, features: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
        """FID and sFID."""
        return tuple(frechet_distance(moments(part), real) for part, real in zip(features, self.reference, strict=True))


def moments(features: torch.Tensor) -> Moments:
    return Moments(features.mean(0), torch.cov(features.T), len(features))


class Verdicts:
    """Prints PASS or FAIL for every clause and counts the failures."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, clause: str, holds: bool, why: str, word: str = "") -> None:
        self.failed += not holds
        print(f"{word or ('PASS' if holds else 'FAIL')} {clause}: {why}", flush=True)

    def grows(self, clause: str, degrees: tuple[float, ...], series: dict[Size, list[float]]) -> None:
        """Every size's distances ascend with the degree, but for what lies within RESOLUTION."""
        fall = max(max(0.0, *(a - b for a, b in pairwise(values))) for values in series.values())
        strictly = f", but for a fall of {fall:.4f}" if fall else ""
        word = "NEAR" if 0 < fall < RESOLUTION else ""  # a fall, by less than what another set of scenes would change
        self(clause, fall < RESOLUTION, f"at {', '.join(map(str, degrees))}{strictly}", word)
        for size, values in series.items():
            print(f"     {size_name(*size)} " + "".join(f"{value:9.2f}" for value in values))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default=classifier.WEIGHTS, type=Path)
    weights = parser.parse_args().weights
    model, verdict = classifier.load(weights), Verdicts()
    scorers = {size: Scorer(model, size) for size in SIZES}
    features = {size: {} for size in SIZES}  # size -> failure -> features and spatial features
    table = {size: {} for size in SIZES}  # size -> failure -> FID and sFID

    print(f"{f'FID and sFID, N = {N}':44}" + "".join(f"{size_name(*size):>16}" for size in SIZES))
    for title, failures in (
        ("", {REAL: whole, **STRUCTURE}),
        ("shown in training", TRAINED),
        ("not shown in training", UNTRAINED),
    ):
        print(title and f"-- {title}, no demand", end=title and "\n")
        for name, spoiled in failures.items():
            for size, scorer in scorers.items():
                features[size][name] = scorer.features(spoiled(size))
                table[size][name] = scorer.distances(features[size][name])
            print(f"{name:44}" + "".join("{:9.2f}{:7.1f}".format(*table[size][name]) for size in SIZES), flush=True)

    print()
    for name in STRUCTURE:
        share = min(table[size][name][0] / table[size][EMPTY][0] for size in SIZES)
        times = min(table[size][name][0] / table[size][REAL][0] for size in SIZES)
        verdict(
            f"(a) {name}", share >= 0.5 and times >= 20, f"at least {share:.2f} of the empty ground, {times:.0f} x real scenes"
        )

    print()
    order = rng().permutation(N)

    def partly(size: Size, name: str, share: float) -> float:
        """FID where a share of the pictures is spoiled."""
        bad, good = order[: round(share * N)], order[round(share * N) :]
        return scorers[size].distances(
            tuple(torch.cat([spoiled[bad], real[good]])
                  for spoiled, real in zip(features[size][name], features[size][REAL], strict=True))
        )[0]  # fmt: skip

    for name in STRUCTURE:
        series = {size: [partly(size, name, share) for share in SHARES] for size in SIZES}
        verdict.grows(f"(b) share of pictures, {name}", SHARES, series)
    for name, (degrees, spoiled) in STRENGTHS.items():
        series = {
            size: [scorer.distances(scorer.features(spoiled(size, degree)))[0] for degree in degrees]
            for size, scorer in scorers.items()
        }
        verdict.grows(f"(b) {name}", degrees, series)

    print()
    stated = classifier.stated(weights)["sizes"]
    for size in classifier.SIZES:
        scorer = scorers[size] if size in scorers else Scorer(model, size)
        fid, top1 = scorer.distances(scorer.features(whole(size)))[0], stated[size_name(*size)]["top1"]
        verdict(f"(c) {size_name(*size)}", fid < 0.3 and top1 >= FIRST_VERSION_TOP1, f"real scenes {fid:.3f}, top-1 {top1:.4f}")
    return int(verdict.failed > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
