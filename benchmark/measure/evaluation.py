"""Measures evaluation: the Frechet distance's speed, memory against N, precision and recall of 10k x 10k, detectors.

    python -m benchmark.measure.evaluation [frechet] [memory] [wide] [float16] [rest] [manifold] [detectors]

Nothing is downloaded. Each figure comes from a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.linalg
import torch
from safetensors.numpy import save_file

from benchmark.evaluate import detectors, reference, score
from benchmark.evaluate.detectors.base import at_rest, outputs_of
from benchmark.evaluate.external import score_files
from benchmark.evaluate.manifold import precision_recall
from benchmark.evaluate.metrics import FrechetInfluence, Moments, frechet_distance
from benchmark.evaluate.samples import Images, Unit, export_npz
from benchmark.files import UserError, exit_code, unknown

WIDTH = 2048


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clock(act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that it took, and its value."""
    start = time.perf_counter()
    value = act()
    return time.perf_counter() - start, float(value)


def frechet() -> None:
    """The Frechet distance of 2048 features, and the same by torchmetrics and by scipy's square root of a matrix."""
    from torchmetrics.image.fid import _compute_fid

    random = np.random.default_rng(0)
    scale = np.exp(random.uniform(-4, 0, WIDTH))
    sides = [random.normal(size=(5000, WIDTH)) * scale + shift for shift in (0, 0.01)]
    a, b = (Moments(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False)), len(x)) for x in sides)
    ours, value = clock(lambda: frechet_distance(a, b))
    print(f"frechet 2048 x 2048, {torch.get_num_threads()} threads: ours {ours:.1f} s ({value:.8f})", flush=True)
    again, _ = clock(lambda: frechet_distance(a, b))
    print(f"  again, the reference's factor at hand, {again:.1f} s", flush=True)
    seconds, found = clock(lambda: FrechetInfluence(a, b).value)
    print(f"  with influences {seconds:.1f} s ({found:.8f})", flush=True)
    seconds, found = clock(lambda: _compute_fid(a.mu, a.sigma, b.mu, b.sigma))
    print(f"  torchmetrics {seconds:.1f} s ({found:.8f}), {seconds / ours:.1f}x", flush=True)
    root = {}
    seconds, _ = clock(lambda: root.setdefault("trace", np.trace(scipy.linalg.sqrtm(a.sigma.numpy() @ b.sigma.numpy()).real)))
    found = float((a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * root["trace"])
    print(f"  scipy {seconds:.1f} s ({found:.8f}), {seconds / ours:.1f}x", flush=True)


def memory(count: int) -> None:
    """Peak memory and disk of `score --samples` for an .npz of 64 x 64 images against scenes, with the shapes detector."""
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / "samples.npz", Path(folder) / "kept"
        random = np.random.default_rng(0)
        units = [
            Unit(start, 500, "", lambda: random.integers(0, 256, (500, 64, 64, 3), np.uint8)) for start in range(0, count, 500)
        ]
        export_npz(Images("noise", (64, 64), units, ""), path)
        detector = detectors.load("shapes", "random")
        real = reference.make(reference.Scenes(), (64, 64), detector, 1000, 1000, None)
        reference.save(real, Path(folder) / "reference.npz")
        before, began = peak(), time.perf_counter()
        result = score_files(path, Path(folder) / "reference.npz", "shapes", "random", "cpu", keep=kept)
        seconds, size = time.perf_counter() - began, path.stat().st_size >> 20
        features = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()) / 2**20
        print(f"memory N = {count}: peak {peak():.0f} MiB, {before:.0f} before scoring; {size} MiB of samples, {features:.0f} "
              f"MiB of features; {seconds:.0f} s; {result['extraction']}", flush=True)  # fmt: skip


class Wide(detectors.Detector):
    """As many features as Inception has, for next to nothing: a fixed random projection of the picture's 8 x 8 means."""

    name, hash = "wide", "0" * 12

    def __init__(self) -> None:
        self.widths = {"features": WIDTH}
        self.network = torch.nn.Linear(192, WIDTH)
        torch.nn.init.normal_(self.network.weight, generator=torch.Generator().manual_seed(0))

    def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        means = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255 - 0.5, (8, 8))
        return {"features": self.network(means.flatten(1)).relu()}


def wide(count: int) -> None:
    """Peak memory of scores from 2048 features a sample, beyond that of 2,000 samples."""
    with tempfile.TemporaryDirectory() as folder:
        random, detector = np.random.default_rng(0), Wide()
        units = [Unit(start, 500, str(start), lambda: random.integers(0, 256, (500, 16, 16, 3), np.uint8))
                 for start in range(0, count, 500)]  # fmt: skip
        images = Images("noise", (16, 16), units, "")
        real = reference.make(reference.Scenes(), (16, 16), detector, 2500, 1000, None)
        began, before = time.perf_counter(), peak()
        score.extract(images, detector, folder)
        found = score.score(score.Features(folder, images), real, None, score.Options(nearest=1000, all_samples=True, infinity=0))
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) >> 20
        print(f"wide N = {count}: peak {peak():.0f} MiB, {before:.0f} before scoring; {size} MiB of features; "
              f"{time.perf_counter() - began:.0f} s; FID {found['fid']['value']:.3f}", flush=True)  # fmt: skip


def float16(count: int = 5000) -> None:
    """Precision and recall by exact distances and by those of guided-diffusion's evaluator, which are float16, not centred.

    Features of 2048 numbers that are like Inception's: not negative, many of them zero, on a manifold of 32 dimensions.
    """
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(32, WIDTH, generator=generator) / 32**0.5
    for shift in (0.0, 0.15, 0.3):
        real, fake = (0.5 * ((1 - move) * torch.randn(count, 32, generator=generator) @ mix + move - 0.2).relu()
                      for move in (0.0, shift))  # fmt: skip
        exact = [float(side.double().mean()) for side in precision_recall(fake, real)]

        def half(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            """Products summed in float32 and rounded, as a GPU does; squares and sums of them rounded to float16."""
            squares = [side.half().float().square().half().float().sum(dim=1).half() for side in (x, y)]
            products = (x.half().float() @ y.half().float().T).half()
            return (squares[0][:, None] - 2 * products + squares[1][None, :]).clamp(min=0).float()

        radii = [half(x, x).kthvalue(4, dim=1).values for x in (fake, real)]  # the nearest is the point itself
        across = half(fake, real)
        rounded = [float((across <= radii[1][None]).any(dim=1).double().mean()),
                   float((across <= radii[0][:, None]).any(dim=0).double().mean())]  # fmt: skip
        print(f"precision, recall of {count} and {count}, moved by {shift}: exact {exact[0]:.4f} {exact[1]:.4f}, float16 "
              f"{rounded[0]:.4f} {rounded[1]:.4f}, float16 - exact {rounded[0] - exact[0]:+.4f} {rounded[1] - exact[1]:+.4f}",
              flush=True)  # fmt: skip


def rest(count: int = 3000) -> None:
    """Scores of features as they rest in a cell (float16, no logits) and of the same in float32, by shift from the reference.

    Outputs of Inception's widths and scale: not negative, many of them zero, a few large, on a manifold of 32 dimensions.
    """
    generator = torch.Generator().manual_seed(0)

    def outputs(move: float) -> dict[str, np.ndarray]:
        place = (1 - move) * torch.randn(count, 32, generator=generator)
        seen = [(0.5 * (place @ mix[:, :width] / 32**0.5 + move - 0.2)).exp().sub(0.9).relu() for width in (WIDTH, 2023)]
        seen = [value + 0.01 * torch.rand(value.shape, generator=generator) for value in seen]
        spectrum = 10 * torch.randn(count, 128, generator=generator) - 20
        return {name: value.numpy() for name, value in {"features": seen[0], "spatial": seen[1].flip(1).contiguous(),
                "logits": seen[0] @ detector.head.T, "spectrum": spectrum}.items()}  # fmt: skip

    mix = torch.randn(32, WIDTH, generator=generator)
    detector = SimpleNamespace(name="inception", head=0.1 * torch.randn(1008, WIDTH, generator=generator))
    real = {name: torch.from_numpy(value) for name, value in outputs(0.0).items()}
    moments = {
        name: Moments(real[name].double().mean(0), torch.cov(real[name].double().T), count) for name in ("features", "spatial")
    }
    known = reference.Reference(
        **moments, nearest=real["features"], spectrum=real["spectrum"].double().mean(0), meta={"size": None}
    )
    images = Images("synthetic", (256, 256), [Unit(0, count, "", lambda: np.zeros(0))], "")
    options = score.Options(resamples=0, infinity=0, all_samples=True)
    for move in (0.0, 0.2):
        exact, found = outputs(move), []
        for stored, head in ((exact, None), (at_rest(exact, detector, True), detector.head)):
            with tempfile.TemporaryDirectory() as folder:
                save_file(stored, score.unit_file(folder, 0), {"stamp": ""})
                size = score.unit_file(folder, 0).stat().st_size / count
                print(f"rest, {count} images moved by {move}: {size:.0f} bytes an image", flush=True)
                found.append(score.score(score.Features(folder, images, head), known, options=options))
        for name, entry in found[0].items():
            print(f"  {name} {entry['value']:.5g}, at rest {found[1][name]['value'] - entry['value']:+.1e}", flush=True)


def manifold() -> None:
    """Time and peak memory of precision and recall of 10,000 and 10,000 images, 2048 features each."""
    before = peak()
    fake, real = (torch.randn(10_000, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    start = time.perf_counter()
    sides = precision_recall(fake, real)
    seconds, shares = time.perf_counter() - start, [round(float(side.double().mean()), 4) for side in sides]
    print(f"precision, recall 10k x 10k x 2048: {shares} in {seconds:.0f} s; peak {peak():.0f} MiB, {before:.0f} before")


def detector_speed() -> None:
    """Images per second by detector and size."""
    for name, sizes, count in (("inception", (256, 512), 16), ("shapes", (32, 64, 128), 512)):
        detector = detectors.load(name, "random")
        for size in sizes:
            images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
            outputs_of(images[:4], detector)
            seconds, _ = clock(lambda images=images, detector=detector: len(outputs_of(images, detector, 16)))
            print(
                f"detector {name} at {size}: {count / seconds:.1f} images/s on {torch.get_num_threads()} CPU threads", flush=True
            )


PARTS = {"frechet": [(frechet,)], "memory": [(memory, 1000), (memory, 10_000), (memory, 50_000)],
         "wide": [(wide, 2000), (wide, 10_000), (wide, 20_000)],
         "float16": [(float16,)], "rest": [(rest,)], "manifold": [(manifold,)],
         "detectors": [(detector_speed,)]}  # fmt: skip


def measure(parts: Sequence[str]) -> None:
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    for part in parts:
        for target, *arguments in PARTS[part]:
            process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise UserError(f"{part}: the process that measures it ended with exit code {process.exitcode}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: measure(sys.argv[1:] or list(PARTS))))
