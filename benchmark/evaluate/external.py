"""Scoring image files from any source, without training."""

from __future__ import annotations

import dataclasses
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmark import registry
from benchmark.evaluate import detectors, reference
from benchmark.evaluate.detectors import Detector
from benchmark.evaluate.reference import Reference
from benchmark.evaluate.samples import chunks_folder, open_images
from benchmark.evaluate.score import Features, Options, check_size, extract, score, uncertainty
from benchmark.files import UserError
from benchmark.identity import features_folder
from benchmark.protocol import size_name
from benchmark.results.schema import METRICS

# The field's evaluator: all samples for recall, and splits of as many images as it takes with the detector (splits=0).
EVALUATOR = Options(splits=0, all_samples=True)


# --- Anybody's files -------------------------------------------------------------------------------------------------


def score_files(
    samples: Path | str,
    reference_path: Path | str,
    detector_name: str = "inception",
    weights: str | None = None,
    device: torch.device | str | None = None,
    batch: int = 64,
    options: Options = EVALUATOR,
    keep: Path | str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Scores files made elsewhere.

    Args:
        samples: an .npz with `arr_0`, a folder of images, or a cell's folder.
        reference_path: a reference (.npz with mu and sigma); or real images, as any of these, or shards.
        device: None for a GPU if there is one.
        keep: a folder for features, so that the next run continues; None for a temporary one.

    Returns:
        {"count", "size", "detector", "reference", "nearest" (real images behind precision, recall and KID: results with
        another number do not compare), "splits" (of the inception score), "scores", "uncertainty", "extraction" (images and
        seconds of the detector)}
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    images = open_images(samples)
    if str(reference_path) != "shapes" and not Path(reference_path).exists():  # before the weights are fetched
        raise UserError(f"{reference_path} does not exist")
    least = options.neighbours + 1
    if images.count < least:
        raise UserError(f"{samples} holds {images.count} images; precision needs at least {least}, and FID many more")
    detector = detectors.load(detector_name, weights, device)
    real = open_reference(reference_path, detector, images.size_hw, options.nearest, batch, report)
    check_size(real, size_name(*images.size_hw))  # before any work
    if real.nearest is not None and len(real.nearest) < least:
        raise UserError(f"{reference_path} holds {len(real.nearest)} images; precision needs at least {least}, and FID many more")
    splits = options.splits or registry.detector_facts(detector_name).splits(images.count)
    options = dataclasses.replace(options, splits=splits, balanced=False)  # the classes of these images are unknown
    with tempfile.TemporaryDirectory() as scratch:
        folder = features_folder(keep or scratch, detector.name, detector.hash)
        extraction = extract(images, detector, folder, batch=batch, report=report)
        scores = score(Features(folder, images), real, None, options, device)
    for name, entry in scores.items():  # replicates are linear in the images: an interval may leave what is possible
        if name in METRICS and (ends := METRICS[name].ends(entry)):
            entry["low"], entry["high"] = ends
    return {
        "count": images.count,
        "size": size_name(*images.size_hw),
        "detector": {"name": detector.name, "hash": detector.hash},
        "reference": {"hash": real.hash, "count": real.count, "source": real.meta["source"], "upsampled": real.meta["upsampled"]},
        "nearest": None if real.nearest is None else min(len(real.nearest), options.nearest),
        "splits": options.splits,
        "scores": scores,
        "uncertainty": uncertainty(options),
        "extraction": str(extraction),
    }


def open_reference(
    path: Path | str,
    detector: Detector,
    size_hw: tuple[int, int],
    nearest: int = 10_000,
    batch: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Reference:
    """The reference in a file, or made (and not cached) of all the real images at a place."""
    path = Path(path)
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is damaged ({error})") from None
        if "mu.npy" in names:
            return reference.load(path, detector, batch, report)
        source: reference.Source = open_images(path)
    elif chunks_folder(path):
        source = open_images(path)
    else:
        source = reference.open_source(path)
    if source.count is None:
        raise UserError(f"'{path}' has no fixed number of images; make a reference of it with python -m benchmark reference")
    return reference.make(source, size_hw, detector, source.count, nearest, None, batch, report)
