"""Scoring: samples -> features on disk -> the numbers of a record.

Samples are read as a stream, whatever they are stored in, and their features are written unit by unit beside them, so that
memory hardly grows with N and an interrupted run continues. Scores are then taken from the features of all units. The features
of a cell are written as its images are made (run/sample.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from benchmark.evaluate.detectors import Detector
from benchmark.evaluate.detectors.base import exact_float32, outputs_of
from benchmark.evaluate.manifold import kernel_distance, precision_recall
from benchmark.evaluate.metrics import (
    FrechetDistance,
    FrechetInfluence,
    InceptionScore,
    Moments,
    extrapolate,
    frechet_distance,
    infinity_sizes,
    with_interval,
    within_classes,
)
from benchmark.evaluate.reference import Reference
from benchmark.evaluate.samples import Images, Unit
from benchmark.evaluate.spectrum import spectrum_distance
from benchmark.files import UserError, atomic
from benchmark.protocol import Protocol, size_name
from benchmark.streams import balanced_order, subset

# --- Features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extraction:
    """The work of a detector: images and seconds, reading and writing included."""

    images: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.images} images at {self.images / max(self.seconds, 1e-9):.3g} images/s"


def extract(
    images: Images,
    detector: Detector,
    folder: Path | str,
    batch: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """Writes the outputs of the detector for every unit; units that are there already are skipped.

    Args:
        folder: of the features, one file per unit; see `identity.features_folder`.
        batch: images per forward.
        report: called with (images done, images in all).

    Returns:
        how many images went through the detector, and the seconds that took.
    """
    began, extracted = time.monotonic(), 0
    done = 0
    for k, unit in enumerate(images.units):
        path = unit_file(folder, k)
        if not is_done(path, unit):
            arrays = outputs_of(unit.read(), detector, batch)
            with atomic(path) as draft:
                save_file(arrays, draft, {"stamp": unit.stamp})
            extracted += unit.count
        done += unit.count
        report(done, images.count)
    return Extraction(extracted, time.monotonic() - began)


def unit_file(folder: Path | str, k: int) -> Path:
    """Where the features of unit k lie."""
    return Path(folder) / f"unit-{k:05d}.safetensors"


def is_done(path: Path, unit: Unit) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("stamp") == unit.stamp
    except (SafetensorError, OSError):
        return False  # damaged: made anew


class Features:
    """The features of all images, on disk; read unit by unit, as float32 whatever they rest in.

    Args:
        head: [C, D], which makes logits of features where none were stored.

    Raises:
        UserError: features of some unit are missing or belong to other images.
    """

    def __init__(self, folder: Path | str, images: Images, head: Tensor | None = None):
        self.files = [unit_file(folder, k) for k in range(len(images.units))]
        self.starts = [unit.start for unit in images.units]
        self.count, self.size = images.count, size_name(*images.size_hw)
        for file, unit in zip(self.files, images.units, strict=True):
            if not is_done(file, unit):
                raise UserError(f"{file} is missing or belongs to other images; extract the features first")
        with safe_open(self.files[0], "numpy") as file:
            self.widths = {name: file.get_slice(name).get_shape()[1:] for name in file.keys()}  # noqa: SIM118
        self.head = head if "logits" not in self.widths else None
        if self.head is not None:
            self.widths["logits"] = [len(self.head)]

    def __contains__(self, name: str) -> bool:
        return name in self.widths

    def blocks(self, name: str, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
        """(index of the first image, float32 [n, width] or [n]) for every unit."""
        for start, path in zip(self.starts, self.files, strict=True):
            yield start, self._read(path, name, device)

    def take(self, name: str, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Rows of the ascending indices."""
        return torch.cat([rows for _, rows in self.blocks_of(name, indices, device)])

    def blocks_of(self, name: str, indices: np.ndarray, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
        """As `blocks`, but only the rows of the ascending indices; units without any are not read."""
        ends = np.searchsorted(indices, [*self.starts[1:], self.count])
        first = 0
        for start, path, end in zip(self.starts, self.files, ends, strict=True):
            if end > first:
                yield start, self._read(path, name, device)[torch.from_numpy(indices[first:end] - start)]
            first = end

    def _read(self, path: Path, name: str, device: torch.device | str) -> Tensor:
        with safe_open(path, "pt", device=str(device)) as file:
            if name != "logits" or self.head is None:
                return file.get_tensor(name).float()
            with exact_float32():
                return file.get_tensor("features").float() @ self.head.to(device).T

    def all(self, name: str) -> Tensor:
        """All rows; for outputs of a few numbers per image."""
        return torch.cat([rows for _, rows in self.blocks(name)])


class FeatureRows:
    """Chosen images' features in blocks of several units, for `manifold`: read from disk again on every pass."""

    def __init__(self, features: Features, indices: np.ndarray, device: torch.device | str, block: int = 1000):
        self.features, self.indices, self.device, self.block = features, indices, device, block

    def __len__(self) -> int:
        return len(self.indices)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        start, parts = 0, []
        for _, rows in self.features.blocks_of("features", self.indices, self.device):
            parts.append(rows)
            if sum(map(len, parts)) >= self.block:
                yield start, torch.cat(parts)
                start, parts = start + sum(map(len, parts)), []
        if parts:
            yield start, torch.cat(parts)


# --- Scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """How scores are taken; the defaults are those of protocols that cite the field's evaluator.

    `splits` is that of the field's 50,000 samples, 5,000 a split. Of another number of samples a protocol gives its own
    (`Protocol.splits`): round(N / 5000) with Inception, so that a split stays as large and the score comparable.
    """

    splits: int = 10  # of the inception score
    nearest: int = 10_000  # images of either side used for precision, recall and KID
    all_samples: bool = False  # precision and recall from all samples, as the field's evaluator takes them
    neighbours: int = 3
    resamples: int = 200  # bootstrap replicates; 0 for no intervals
    level: float = 0.95  # of the intervals
    infinity: int = 15  # sample sizes from which FID is extrapolated, see `infinity_sizes`; 0 for none
    balanced: bool = True  # labels, where they are known, take turns: every set of samples holds as many of each class


def options_of(protocol: Protocol) -> Options:
    """How a protocol's scores are taken: recall from all samples, as the field's evaluator does; `nearest` counts real images."""
    balanced = protocol.sample.labels == "balanced"
    return Options(splits=protocol.splits, nearest=protocol.score.nearest, all_samples=True, balanced=balanced)


def uncertainty(options: Options) -> dict[str, Any]:
    """What a record says of its intervals: they are over the N images of one model, not over trainings."""
    within = ", within classes" if options.balanced else ""
    return {"method": f"bootstrap over images, of first-order influences{within}", "resamples": options.resamples,
            "level": options.level}  # fmt: skip


def score(
    features: Features,
    real: Reference,
    labels: np.ndarray | None = None,
    options: Options = Options(),
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Every score that the features, the reference and the labels allow.

    Args:
        labels: int [N], the class that each image was asked to show; None if nobody knows. With labels that take turns,
            resampling keeps to classes; with any, detectors that know the data set's classes give top1.
        device: where the statistics are taken; they need float64.

    Returns:
        {score: {"value", "low", "high", "replicates"}}: fid, sfid, is (also "deviation", over splits), precision, recall
        (value only), kid, fid_inf (value only, where N is at least four times D), spectrum, top1, objects.

    Raises:
        UserError: too few images, features that are NaN or all the same, a reference of another size or detector.
    """
    if features.count < 2:
        raise UserError(f"scores need at least 2 images, not {features.count}")
    check_size(real, features.size)
    if labels is not None and len(labels) != features.count:
        raise UserError(f"there are {len(labels)} labels for {features.count} images")
    asked = None if labels is None else torch.as_tensor(np.asarray(labels))
    strata = torch.zeros(features.count) if asked is None or not options.balanced else asked
    everyone = np.arange(features.count)
    scores: dict[str, dict[str, Any]] = {}

    def put(name: str, value: float, influence: Tensor, of: np.ndarray = everyone, **more: Any) -> None:
        """Enters a score with the influences of the images `of`."""
        influence = within_classes(influence.double().cpu(), strata[torch.from_numpy(of)])
        scores[name] = {**with_interval(value, influence, options.resamples, options.level), **more}

    for name, part, there in (("fid", "features", real.features), ("sfid", "spatial", real.spatial)):
        if part in features and there is not None:
            there = there.to(device)
            here = _moments(features, part, device)
            influence = FrechetInfluence(here, there)
            put(name, max(0.0, influence.value), torch.cat([influence(x) for _, x in features.blocks(part, device)]))
            sizes = infinity_sizes(features.count, *features.widths[part], options.infinity)
            if name == "fid" and len(sizes) > 1:
                scores["fid_inf"] = {"value": fid_infinity(features, there, sizes, strata, device)}
    if "logits" in features:
        metric = InceptionScore(*features.widths["logits"], features.count, options.splits).to(device)
        for start, logits in features.blocks("logits", device):
            metric.update(logits, start)
        influence = torch.cat([metric.influence(logits, start) for start, logits in features.blocks("logits", device)])
        put("is", max(1.0, float(metric.compute())), influence, deviation=float(metric.per_split().std(correction=0)))
    if real.nearest is not None:
        near = real.nearest[torch.from_numpy(subset(len(real.nearest), options.nearest))].to(device)
        chosen = subset(features.count, options.nearest)
        put("kid", *kernel_distance(features.take("features", chosen, device), near), chosen)
        chosen = everyone if options.all_samples else chosen
        precise, recalled = precision_recall(FeatureRows(features, chosen, device), near, options.neighbours)
        precision = float(precise.double().mean())
        put("precision", precision, precise.double() - precision, chosen)
        scores["recall"] = {"value": float(recalled.double().mean())}
    if real.spectrum is not None:
        mean = sum(rows.double().sum(dim=0) for _, rows in features.blocks("spectrum")) / features.count
        value, gradient = spectrum_distance(mean, real.spectrum)
        put("spectrum", value, torch.cat([(rows.double() - mean) @ gradient for _, rows in features.blocks("spectrum")]))
    if asked is not None and "predicted" in features:
        right = (features.all("predicted").long() == asked).double()
        put("top1", float(right.mean()), right - right.mean())
    if "objects" in features:
        wrong = (features.all("objects").double() - 1).abs()
        put("objects", float(wrong.mean()), wrong - wrong.mean())
    return scores


def check_size(real: Reference, size: str) -> None:
    """Raises UserError if a reference is known to be of another size than the samples."""
    if real.meta["size"] not in (None, size):
        raise UserError(f"the reference is of {real.meta['size']} images, the samples are {size}: make one of their size")


def _moments(features: Features, part: str, device: torch.device | str) -> Moments:
    metric = FrechetDistance(*features.widths[part]).to(device)
    for _, rows in features.blocks(part, device):
        metric.update(rows)
    moments = metric.moments()
    # The covariance of equal rows is rounding error, not exactly zero.
    if float(moments.sigma.trace()) <= 1e-12 * float(moments.mu.square().sum()):
        raise UserError(f"all {features.count} images have the same {part}: the samples are identical or the detector broken")
    return moments


def fid_infinity(
    features: Features, real: Moments, sizes: list[int], classes: Tensor, device: torch.device | str = "cpu"
) -> float:
    """FID extrapolated to infinitely many images, from random samples of ascending sizes; Chong and Forsyth 2020.

    Departures: the samples are nested, each holding the one before, so that one pass over the features does; and every
    sample holds each class equally often where all images together do, or smaller samples would differ in more than their size.

    Args:
        classes: [N], of which samples hold equally many; all the same where classes are random.
    """
    order = balanced_order(classes.numpy())
    metric = FrechetDistance(*features.widths["features"]).to(device)
    values, before = [], 0
    for size in sizes:
        for _, rows in features.blocks_of("features", np.sort(order[before:size]), device):
            metric.update(rows)
        values.append(frechet_distance(metric.moments(), real))
        before = size
    return extrapolate(sizes, values)
