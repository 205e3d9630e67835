"""The denoising loss at a test size: the training loss of the averaged weights on real images of that size, without sampling.

It is the counterpart of the perplexity by which length extrapolation is measured in language. Images, noise and noise levels are
the same for every method and training, so that two methods are compared in pairs and a few hundred images distinguish them. No
class is dropped and nothing is guided; positions are those of sampling at the test size.

Noise levels are the middles of equal shares of the density that the objective trains with (the quantiles 1/2L, 3/2L, ...), so
that the mean over levels estimates the training loss.

Shapes: N images, L noise levels, [C, h, w] pixels or latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.evaluate.metrics import with_interval, within_classes
from benchmark.evaluate.reference import Scenes, Shards
from benchmark.files import UserError, digest
from benchmark.model.autoencoder import Autoencoder, autoencoder_identity
from benchmark.model.draws import heldout_generator
from benchmark.model.method import Method
from benchmark.model.precision import autocast
from benchmark.protocol import size_hw
from benchmark.streams import subset

IMAGES, LEVELS = 256, 8
SPLIT = "heldout"  # the scenes that neither trainings nor references see
READ = 32  # images that are decoded and encoded at once
TOKENS = 16384  # of one forward: a function of the grid alone, so that the last bits do not depend on the machine
POSTERIOR = 0  # the number of the noise that samples an autoencoder's posterior; those of the levels count from 1


@dataclass(frozen=True)
class HeldOut:
    """Real images of one size as a model's core sees them."""

    size: str
    data: Tensor  # float32 [N, C, h, w], pixels in [-1, 1] or latents
    labels: Tensor  # int64 [N]
    balanced: bool  # whether classes take turns, so that every set of images holds the same number of each
    hash: str  # of what the images are: losses on other images do not compare
    trained_on: bool = False  # whether a training reads these very images, if at another size


def heldout(source: Scenes | Shards, size: str, count: int = IMAGES, autoencoder: str = "",
            device: torch.device | str = "cpu", *, trained_on: bool = False) -> HeldOut:  # fmt: skip
    """The images of a source on which losses are taken.

    Args:
        source: scenes, which are rendered natively at the size, or shards, whose images are cut by the evaluator's centre crop.
            Shards of the training set measure what was trained on, at another size; give those of a validation set for more.
        size: HEIGHTxWIDTH in pixels.
        count: how many; of shards with more of them always the same ones, chosen at random.
        autoencoder: of a model of latents: its name or folder. Its posterior is sampled once for every image.
        device: where the images are encoded and kept.
        trained_on: whether trainings read this source.
    """
    count = count if source.count is None else min(count, source.count)
    indices = np.arange(count) if source.count is None else subset(source.count, count)
    pictures, encode, parts = source.pictures(indices, size_hw(size)), Autoencoder(autoencoder) if autoencoder else None, []
    for start in range(0, count, READ):
        batch = [picture for picture, _ in itertools.islice(pictures, READ)]
        data = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(device).float().div_(127.5).sub_(1)
        if encode:
            latents = encode({"image": data})
            noise = noise_of(range(start, start + len(batch)), POSTERIOR, latents["std"])
            data = latents["image"] + latents["std"] * noise
        parts.append(data)
    labels = torch.from_numpy(source.labels(indices)).to(device)
    split = source.split if isinstance(source, Scenes) else ""
    weights = autoencoder_identity(autoencoder)[1] if autoencoder else ""
    key = digest([source.name, source.hash, split, size, count, weights])
    return HeldOut(size, torch.cat(parts), labels, isinstance(source, Scenes), key, trained_on)


def noise_of(indices: Iterable[int], level: int, like: Tensor) -> Tensor:
    """Standard normal [n, C, h, w], of each image's own generator at a level, on the device of `like` [n, C, h, w]."""
    drawn = [torch.randn(like.shape[1:], generator=heldout_generator(index, level)) for index in indices]
    return torch.stack(drawn).to(like.device)


def quantiles(levels: int) -> list[float]:
    """Middles of `levels` equal shares of (0, 1)."""
    return [(2 * level + 1) / (2 * levels) for level in range(levels)]


def times(method: Method, levels: int = LEVELS) -> list[float]:
    """The noise levels on which a method's loss is taken, ascending; 1 is noise.

    With a DDPM objective they are the flow's times of the same signal-to-noise ratio, and not levels / 1000: so the numbers of
    both objectives mean the same.
    """
    drawn = method.objective.times(torch.tensor(quantiles(levels), dtype=torch.float64))
    return [method.objective.noise_level(1000 * time) for time in drawn.tolist()]


@torch.no_grad()
def losses(
    method: Method,
    images: HeldOut,
    levels: int = LEVELS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The loss of every image at every noise level, float64 [L, N] on the CPU.

    Args:
        method: built, with its averaged weights, on the device of the images.
        report: called with (forwards done, forwards in all).

    Raises:
        UserError: a loss is not a number.
    """
    count, tokens = len(images.data), int(np.prod(method.protocol.grid(images.size)))
    batch = max(1, TOKENS // tokens)
    starts = range(0, count, batch)
    predict = method.predictor(images.size)
    found = torch.zeros(levels, count, dtype=torch.float64)
    for level, quantile in enumerate(quantiles(levels)):  # outside: what positions depend on the level is made once for all
        for number, start in enumerate(starts):
            rows = slice(start, min(start + batch, count))
            data, label = images.data[rows], images.labels[rows]
            noise = noise_of(range(rows.start, rows.stop), level + 1, data)
            uniform = torch.full((len(data),), quantile, device=data.device)

            def predict_class(x: Tensor, time: Tensor, label: Tensor = label) -> Tensor:
                return predict(x, time, label)

            with autocast(method.protocol.sample.precision, data.device):
                found[level, rows] = method.objective.losses(predict_class, data, uniform, noise).double().cpu()
            report(level * len(starts) + number + 1, levels * len(starts))
    if not torch.isfinite(found).all():
        bad = int((~torch.isfinite(found)).any(dim=0).sum())
        raise UserError(f"the denoising loss of {method.title} at {images.size} is not a number on {bad} of {count} images")
    return found


def entry(found: Tensor, method: Method, images: HeldOut, resamples: int, level: float) -> dict[str, Any]:
    """The score of a record.

    Args:
        found: [L, N].

    Returns:
        {"value", "low", "high", "replicates"}, of the mean over levels and images; "levels", the mean at each noise level, and
        "times", those levels (see `times`); "images", what the images are: only losses on the same ones compare; "trained_on",
        whether trainings read them.
    """
    each = found.mean(dim=0)
    value = float(each.mean())
    influence = each - value
    if images.balanced:
        influence = within_classes(influence, images.labels.cpu())
    return {
        **with_interval(value, influence, resamples, level),
        "levels": found.mean(dim=1).tolist(),
        "times": times(method, len(found)),
        "images": images.hash,
        "trained_on": images.trained_on,
    }
