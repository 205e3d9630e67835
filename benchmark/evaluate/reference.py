"""Reference statistics: feature statistics of real images at a size, computed once and cached.

A reference is an .npz whose keys `mu`, `sigma`, `mu_s` and `sigma_s` are those of guided-diffusion's references, so that
either can be used in the other's place; ours also hold the features of some images (for precision, recall and KID), the
mean log spectrum, and in `meta` how many images they were made of and from what.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmark.data import shapes
from benchmark.data.images import center_crop
from benchmark.data.index import Index, folder_name, is_shards
from benchmark.data.remote import REMOTE
from benchmark.evaluate.detectors import Detector
from benchmark.evaluate.metrics import FrechetDistance, Moments
from benchmark.evaluate.samples import DAMAGED_ZIP, file_list_hash, image_files, open_image, open_images, place_name
from benchmark.evaluate.spectrum import log_spectrum
from benchmark.files import UserError, atomic, digest, file_hash
from benchmark.identity import reference_ending, reference_key
from benchmark.protocol import size_name
from benchmark.streams import subset

FOLDER = Path("runs/references")
WORKERS = 8  # threads that decode and resize


# --- Sources of real images ------------------------------------------------------------------------------------------


class Source(Protocol):
    """Where real images come from."""

    name: str
    hash: str  # of the inputs
    count: int | None  # how many images there are; None: as many as one likes

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        """(uint8 [H, W, 3], whether it was enlarged) for each of the ascending indices."""
        ...


class Scenes:
    """A split of the embedded data set, rendered natively at the size."""

    name = "shapes"
    count = None

    def __init__(self, split: str = "reference") -> None:
        self.split, self.hash = split, shapes.REVISION

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The classes of scenes, int64; they take turns."""
        return np.array([shapes.label(self.split, index) for index in indices.tolist()])

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        for start in range(0, len(indices), 64):
            for picture in shapes.render_batch(self.split, indices[start : start + 64], size_hw):
                yield picture, False


class ImageFolder:
    """All images below a folder, in the order of their paths; cut to size by guided-diffusion's centre crop."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.files = image_files(self.path)
        self.name, self.count = place_name(self.path), len(self.files)
        # Times too: an edited file may keep its size, and uncompressed pictures of one size always do.
        self.hash = digest([file_list_hash(self.path, self.files), [file.stat().st_mtime_ns for file in self.files]])

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        return _threaded(lambda i: _cut(open_image(self.files[i]), size_hw), iter(indices.tolist()))


class Shards:
    """The images of a data set written by `python -m benchmark shards`; cut to size by guided-diffusion's centre crop."""

    def __init__(self, path: Path | str):
        self.index = Index(path)
        if self.index.kind != "images":
            raise UserError(f"{path} holds {self.index.kind}; references are made from the images themselves")
        self.name = folder_name(self.index.folder, self.index.manifest)
        self.count, self.hash = len(self.index), self.index.fingerprint

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The classes of images, int64."""
        return self.index.rows["label"][indices].astype(np.int64)

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        samples = (self.index[i] for i in indices.tolist())
        return _threaded(lambda s: _cut(open_image(io.BytesIO(s.data), f"{s.shard}: {s.key}"), size_hw), samples)


def _threaded(work: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
    """work(item) in order, a bounded number at a time: memory does not grow with the number of items."""
    with ThreadPoolExecutor(WORKERS) as pool:
        while batch := list(islice(items, 8 * WORKERS)):
            yield from pool.map(work, batch)


def open_source(path: Path | str) -> Source:
    """A source by its place: "shapes", a folder of shards, or a folder of images."""
    if str(path) == "shapes":
        return Scenes()
    if REMOTE.match(str(path)):
        return Shards(str(path))
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; references are made from 'shapes', a folder of shards or one of images")
    return Shards(path) if any(path.glob("*.tar")) or is_shards(path) else ImageFolder(path)


def _cut(image: Image.Image, size_hw: tuple[int, int]) -> tuple[np.ndarray, bool]:
    enlarged = image.height < size_hw[0] or image.width < size_hw[1]
    return np.asarray(center_crop(image, size_hw)), enlarged


# --- References ------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """Reference statistics of one detector; None where the file has none."""

    features: Moments
    spatial: Moments | None
    nearest: Tensor | None  # features [M, D] float32 of M of the images
    spectrum: Tensor | None  # mean log spectrum [K], decibels
    meta: dict[str, Any]  # hash, count (None: not known), size, source, upsampled, detector {name, hash}

    @property
    def hash(self) -> str:
        return self.meta["hash"]

    @property
    def count(self) -> int | None:
        return self.meta["count"]


def identity(source: Source, size_hw: tuple[int, int], detector: Detector, count: int, nearest: int) -> str:
    """The hash of all that decides what a reference holds, up to rounding. A folder of images has its own on every machine."""
    return reference_key(source.name, source.hash, size_name(*size_hw), detector.name, detector.hash, count, nearest)


def make(
    source: Source,
    size_hw: tuple[int, int],
    detector: Detector,
    count: int,
    nearest: int = 10_000,
    folder: Path | str | None = FOLDER,
    batch: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Reference:
    """Reference statistics of `count` images of a source; from the cache if they are there.

    Args:
        size_hw: pixels (h, w); the samples' size.
        count: N of the statistics. Fewer than the source has are chosen at random, always the same ones.
        nearest: how many images' features are kept.
        folder: the cache; None for neither reading nor writing it.
        batch: images per forward of the detector.
        report: called with (images done, images in all).

    Raises:
        UserError: the source has fewer than `count` images, or one of them cannot be read.
    """
    if count < 2:
        raise UserError(f"a reference needs at least 2 images, not {count}")
    if nearest < 1:
        raise UserError(f"a reference keeps the features of at least 1 image for precision and recall, not {nearest}")
    if source.count is not None and source.count < count:
        advice = "ask for fewer (score.reference, or --count)"
        raise UserError(f"{source.name} has {source.count} images, the reference asks for {count}: {advice}")
    key = identity(source, size_hw, detector, count, nearest)
    path = None
    if folder is not None:
        name = f"{source.name}-{size_name(*size_hw)}-{detector.name}-{count}"
        path = Path(folder) / (name + reference_ending(key, detector.name))
        if path.is_file():
            try:
                return load(path, detector)
            except UserError as error:
                raise UserError(f"{error}; remove it and run the command again") from None
    indices = np.arange(count) if source.count is None else subset(source.count, count)
    keep = torch.zeros(count, dtype=torch.bool)
    keep[torch.from_numpy(subset(count, nearest))] = True
    metrics = {name: FrechetDistance(detector.widths[name]).to(detector.device)
               for name in ("features", "spatial") if name in detector.widths}  # fmt: skip
    kept, spectrum, enlarged, done = [], torch.zeros((), dtype=torch.float64), 0, 0
    pictures = source.pictures(indices, size_hw)
    while pairs := list(islice(pictures, batch)):
        images = torch.from_numpy(np.stack([picture for picture, _ in pairs])).permute(0, 3, 1, 2).to(detector.device)
        outputs = detector(images)
        for name, metric in metrics.items():
            metric.update(outputs[name])
        kept.append(outputs["features"].cpu()[keep[done : done + len(pairs)]])
        spectrum = spectrum + log_spectrum(images).double().sum(dim=0).cpu()
        enlarged += sum(flag for _, flag in pairs)
        done += len(pairs)
        report(done, count)
    assert done == count, (done, count)
    reference = Reference(
        features=metrics["features"].moments().to("cpu"),
        spatial=metrics["spatial"].moments().to("cpu") if "spatial" in metrics else None,
        nearest=torch.cat(kept),
        spectrum=spectrum / count,
        meta={"hash": key, "count": count, "size": size_name(*size_hw), "source": source.name, "upsampled": enlarged,
              "detector": {"name": detector.name, "hash": detector.hash}},
    )  # fmt: skip
    if path is not None:
        save(reference, path)
    return reference


def save(reference: Reference, path: Path | str) -> None:
    """Writes a reference as .npz, atomically."""
    arrays = {"mu": reference.features.mu, "sigma": reference.features.sigma}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mu, "sigma_s": reference.spatial.sigma}
    if reference.nearest is not None:
        arrays["nearest"] = reference.nearest
    if reference.spectrum is not None:
        arrays["spectrum"] = reference.spectrum
    with atomic(path) as draft, open(draft, "wb") as file:
        np.savez(file, meta=json.dumps(reference.meta, sort_keys=True), **{k: v.numpy() for k, v in arrays.items()})


ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "nearest", "spectrum")


def load(
    path: Path | str, detector: Detector, batch: int = 64, report: Callable[[int, int], None] = lambda done, total: None
) -> Reference:
    """A reference from an .npz: one of ours, or one of guided-diffusion's as it is.

    guided-diffusion's hold images (`arr_0`) instead of features; they go through the detector here. How many images its
    moments were made of is not in the file.

    Raises:
        UserError: the file is not there or damaged, or belongs to another detector.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; make one with python -m benchmark reference")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in ARRAYS if key in file.files}
            arrays = {key: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for key, array in found.items()}
            meta = json.loads(str(file["meta"])) if "meta" in file.files else None
            holds_images = "arr_0" in file.files
    except (*DAMAGED_ZIP, ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable reference ({error})") from None
    if meta is not None and not (isinstance(meta, dict) and {"hash", "count", "source", "size", "detector"} <= meta.keys()):
        raise UserError(f"{path} is not a readable reference (its meta was not written by python -m benchmark reference)")
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} holds no mean and covariance (mu, sigma), so it is not a reference")
    own = {"name": detector.name, "hash": detector.hash}
    if meta is not None and meta["detector"] != own:
        theirs = meta["detector"]
        raise UserError(
            f"{path} was made with detector {theirs['name']} {theirs['hash']}, not {detector.name} {detector.hash}: "
            "features of two detectors cannot be compared"
        )
    width = detector.widths["features"]
    if arrays["mu"].numel() != width:
        raise UserError(f"{path} is for features of width {arrays['mu'].numel()}, detector '{detector.name}' has {width}")
    if meta is None:
        if detector.name != "inception":
            raise UserError(f"{path} is a reference of guided-diffusion, which is for detector 'inception' only")
        meta = {"hash": file_hash(path)[:12], "count": None, "source": path.name, "upsampled": None, "size": None,
                "detector": own}  # fmt: skip
        if holds_images:
            images, seen, done = open_images(path), [], 0
            meta["size"] = size_name(*images.size_hw)
            for part in (part for unit in images.batches() for part in np.array_split(unit, -(-len(unit) // batch))):
                seen.append(_features_of(part, detector))
                done += len(part)
                report(done, images.count)
            arrays["nearest"] = torch.cat([features for features, _ in seen])
            arrays["spectrum"] = torch.cat([spectra for _, spectra in seen]).double().mean(dim=0)
    try:
        if "nearest" in arrays and arrays["nearest"].shape[1:] != (width,):
            raise UserError(f"its features for precision have the shape {list(arrays['nearest'].shape)}, not [images, {width}]")
        for name in arrays.keys() & {"nearest", "spectrum"}:
            if not torch.isfinite(arrays[name]).all():
                raise UserError(f"{name} must be finite")
        features = Moments(arrays["mu"], arrays["sigma"], meta["count"])
        spatial = Moments(arrays["mu_s"], arrays["sigma_s"], meta["count"]) if {"mu_s", "sigma_s"} <= arrays.keys() else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Reference(
        features=features,
        spatial=spatial,
        nearest=arrays.get("nearest"),
        spectrum=arrays.get("spectrum"),
        meta=meta,
    )


def _features_of(images: np.ndarray, detector: Detector) -> tuple[Tensor, Tensor]:
    """Features and log spectra of uint8 images [n, H, W, 3], on the CPU."""
    batch = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(detector.device)
    return detector(batch)["features"].cpu(), log_spectrum(batch).cpu()
