"""Scoring: samples -> features on disk -> the numbers of a record.

Samples are read as a stream, whatever they are stored in, and their features are written unit by unit beside them, so that
memory does not grow with N, an interrupted run continues, and ranks share the work: rank r looks at units r, r + world, ...
Scores are then taken from the features of all units.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from benchmark import detect, reference
from benchmark.detect import Detector, log_spectrum
from benchmark.files import UserError, atomic, code_version, digest
from benchmark.metrics import (
    FrechetDistance,
    FrechetInfluence,
    InceptionScore,
    Moments,
    extrapolate,
    frechet_distance,
    infinity_sizes,
    kernel_distance,
    precision_recall,
    spectrum_distance,
    with_interval,
)
from benchmark.protocol import size_name
from benchmark.reference import Reference, image_files, open_image, subset

CODE = ("benchmark/detect.py", "benchmark/classifier.py")  # what features run through
UNIT_BYTES, UNIT_IMAGES = 1 << 27, 500  # limits of a unit of work: 128 MiB of pixels, 500 images
INFINITY_SEED = 1
FID_INFINITY_LEAST = 20  # images, below which N / 10 is no sample


# --- Opening images --------------------------------------------------------------------------------------------------


@dataclass
class Unit:
    """A run of images that is read, looked at and written as one."""

    start: int
    count: int
    stamp: str  # changes when the images do
    read: Callable[[], np.ndarray]  # -> uint8 [count, H, W, 3]


class Images:
    """Anybody's images as a stream of units: a cell's chunks, an evaluator's .npz, a folder of pictures.

    Also a source of references (`pictures`), when they are real images of the size already.

    Raises:
        UserError: there are none, they differ in size, or they are not uint8 [n, H, W, 3].
    """

    def __init__(self, name: str, size_hw: tuple[int, int], units: list[Unit]):
        self.name, self.size_hw, self.units = name, size_hw, units
        self.count = sum(unit.count for unit in units)
        self.hash = digest([unit.stamp for unit in units])

    def batches(self) -> Iterator[np.ndarray]:
        """All images in order, uint8 [n, H, W, 3] at a time."""
        return (unit.read() for unit in self.units)

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        """Some of the images, as `reference.make` asks for them."""
        if size_hw != self.size_hw:
            raise UserError(f"{self.name} has images of {size_name(*self.size_hw)}, the samples are {size_name(*size_hw)}")
        for unit in self.units:
            inside = indices[(indices >= unit.start) & (indices < unit.start + unit.count)]
            if len(inside):
                images = unit.read()
                yield from ((images[i - unit.start], False) for i in inside)


def open_images(path: Path | str) -> Images:
    """Opens a folder of chunks (or a cell's folder), an .npz with `arr_0`, or a folder of pictures."""
    path = Path(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if not path.is_dir():
        raise UserError(f"{path} is not there; samples are a cell's folder, an .npz with arr_0, or a folder of images")
    for folder in (path / "chunks", path):
        if any(folder.glob("chunk-*.npy")):
            return _open_chunks(folder)
    return _open_pictures(path)


def check_layout(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Raises UserError unless images are uint8 [n, H, W, 3]."""
    if dtype != np.uint8:
        raise UserError(f"{where} holds {dtype}, images must be uint8 (0 to 255)")
    if len(shape) != 4 or shape[3] != 3:
        hint = ": that is NCHW, transpose it to NHWC" if len(shape) == 4 and shape[1] == 3 else ""
        raise UserError(f"{where} has the shape {list(shape)}, images must be [n, height, width, 3]{hint}")


def _stamp(path: Path, *more: Any) -> str:
    state = path.stat()
    return digest([path.name, state.st_size, state.st_mtime_ns, *more])


def _open_chunks(folder: Path) -> Images:
    files = sorted(folder.glob("chunk-*.npy"))
    units, size, start = [], None, 0
    for k, file in enumerate(files):
        if file.name != f"chunk-{k:05d}.npy":
            raise UserError(f"{folder}/chunk-{k:05d}.npy is missing; sample the cell again, finished chunks are kept")
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{file} is damaged ({error}); remove it and sample the cell again") from None
        check_layout(array.shape, array.dtype, str(file))
        size = size or array.shape[1:3]
        _check_size(size, array.shape[1:3], file)
        units.append(Unit(start, len(array), _stamp(file), lambda file=file: np.load(file, allow_pickle=False)))
        start += len(array)
    return Images(folder.parent.name if folder.name == "chunks" else folder.name, size, units)


def _check_size(first: Sequence[int], size: Sequence[int], where: Path) -> None:
    if tuple(first) != tuple(size):
        raise UserError(f"{where} is {size_name(*size)}, the images before it are {size_name(*first)}; all must be of one size")


def unit_length(height: int, width: int) -> int:
    """How many images of a size make a unit."""
    return max(1, min(UNIT_IMAGES, UNIT_BYTES // (height * width * 3)))


def _open_npz(path: Path) -> Images:
    """An .npz is a zip of .npy files; its member is read piece by piece and never held as a whole."""
    if not path.is_file():
        raise UserError(f"{path} is not there")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            shape, fortran, dtype = _npy_header(member)
            offset = member.tell()
    except KeyError:
        raise UserError(f"{path} has no array arr_0, which is where an evaluator's .npz holds its images") from None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error})") from None
    check_layout(shape, dtype, str(path))
    if fortran:
        raise UserError(f"{path} is in Fortran order; save a C-ordered array")
    total, height, width = shape[:3]
    if not total:
        raise UserError(f"{path} holds no images")
    step, item = unit_length(height, width), height * width * 3

    def read(start: int, count: int) -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            member.seek(offset + start * item)
            data = member.read(count * item)
        if len(data) != count * item:
            raise UserError(f"{path} is damaged: it ends after image {start + len(data) // item} of {total}")
        return np.frombuffer(data, np.uint8).reshape(count, height, width, 3)

    units = [
        Unit(start, count, _stamp(path, start, count), lambda start=start, count=count: read(start, count))
        for start, count in _runs(total, step)
    ]
    return Images(path.stem, (height, width), units)


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(member)
    return npy.read_array_header_1_0(member) if version == (1, 0) else npy.read_array_header_2_0(member)


def _runs(total: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(step, total - start)) for start in range(0, total, step)]


def _open_pictures(folder: Path) -> Images:
    files = image_files(folder)
    size = _picture(files[0]).shape[:2]

    def read(part: list[Path]) -> np.ndarray:
        images = []
        for file in part:
            image = _picture(file)
            _check_size(size, image.shape[:2], file)
            images.append(image)
        return np.stack(images)

    units = []
    for start, count in _runs(len(files), unit_length(*size)):
        part = files[start : start + count]
        units.append(Unit(start, count, digest([_stamp(file) for file in part]), lambda part=part: read(part)))
    return Images(folder.name, size, units)


def _picture(file: Path) -> np.ndarray:
    return np.asarray(open_image(file))


def export_npz(images: Images, path: Path | str) -> None:
    """Writes images as the evaluator's .npz (`arr_0`, uint8 NHWC, stored), unit by unit: memory does not grow with N."""
    shape = (images.count, *images.size_hw, 3)
    with (
        atomic(path) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for batch in images.batches():
            member.write(np.ascontiguousarray(batch).data)


# --- Features --------------------------------------------------------------------------------------------------------


def features_folder(out: Path | str, detector: Detector) -> Path:
    """Where the features of samples lie below a cell's folder: a name for the weights and the code behind them."""
    return Path(out) / "features" / f"{detector.name}-{detector.hash}-{code_version(*CODE)[:6]}"


def extract(
    images: Images,
    detector: Detector,
    folder: Path | str,
    rank: int = 0,
    world: int = 1,
    batch: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes what the detector sees in every unit k with k mod world = rank; units that are there already are skipped.

    Args:
        folder: of the features, one file per unit; see `features_folder`.
        batch: images per forward.
        report: called with (images done, images in all), of this rank's.
    """
    mine = [(k, unit) for k, unit in enumerate(images.units) if k % world == rank]
    total, done = sum(unit.count for _, unit in mine), 0
    for k, unit in mine:
        path = _unit_file(folder, k)
        if not _is_done(path, unit):
            arrays = look(unit.read(), detector, batch)
            with atomic(path) as draft:
                save_file(arrays, draft, {"stamp": unit.stamp})
        done += unit.count
        report(done, total)


def look(images: np.ndarray, detector: Detector, batch: int = 64) -> dict[str, np.ndarray]:
    """What the detector sees in uint8 images [n, H, W, 3], and their log spectra ("spectrum"); float32, on the CPU."""
    check_layout(images.shape, images.dtype, "a batch of samples")
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), batch):
        tensor = torch.from_numpy(np.array(images[start : start + batch])).permute(0, 3, 1, 2).to(detector.device)
        outputs = detector(tensor) | {"spectrum": log_spectrum(tensor)}
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _unit_file(folder: Path | str, k: int) -> Path:
    return Path(folder) / f"unit-{k:05d}.safetensors"


def _is_done(path: Path, unit: Unit) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("stamp") == unit.stamp
    except (SafetensorError, OSError):
        return False  # damaged: made anew


class Features:
    """The features of all images, on disk; read unit by unit.

    Raises:
        UserError: features of some unit are missing or belong to other images.
    """

    def __init__(self, folder: Path | str, images: Images):
        self.files = [_unit_file(folder, k) for k in range(len(images.units))]
        self.starts = [unit.start for unit in images.units]
        self.count = images.count
        for file, unit in zip(self.files, images.units, strict=True):
            if not _is_done(file, unit):
                raise UserError(f"{file} is missing or belongs to other images; the features have to be made first")
        with safe_open(self.files[0], "numpy") as file:
            self.widths = {name: file.get_slice(name).get_shape()[1:] for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self.widths

    def blocks(self, name: str, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
        """(index of the first image, float32 [n, width] or [n]) for every unit."""
        for start, path in zip(self.starts, self.files, strict=True):
            with safe_open(path, "pt", device=str(device)) as file:
                yield start, file.get_tensor(name)

    def take(self, name: str, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Rows of the ascending indices."""
        return torch.cat([rows for _, rows in self.blocks_of(name, indices, device)])

    def blocks_of(self, name: str, indices: np.ndarray, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
        """As `blocks`, but only the rows of the ascending indices; units without any are not read."""
        ends = np.searchsorted(indices, [*self.starts[1:], self.count])
        first = 0
        for start, path, end in zip(self.starts, self.files, ends, strict=True):
            if end > first:
                with safe_open(path, "pt", device=str(device)) as file:
                    yield start, file.get_tensor(name)[torch.from_numpy(indices[first:end] - start)]
            first = end

    def all(self, name: str) -> Tensor:
        """All rows; for outputs of a few numbers per image."""
        return torch.cat([rows for _, rows in self.blocks(name)])


# --- Scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """How scores are taken; the defaults are those of protocols that cite the field's evaluator."""

    splits: int = 10  # of the inception score
    nearest: int = 10_000  # images of either side used for precision, recall and KID
    neighbours: int = 3
    resamples: int = 200  # bootstrap replicates; 0 for no intervals
    level: float = 0.95  # of the intervals
    infinity: int = 15  # sample sizes from which FID is extrapolated; 0 for none


def uncertainty(options: Options) -> dict[str, Any]:
    """What a record says of its intervals: they are over the N images of one model, not over trainings."""
    return {"method": "bootstrap over images of first-order influences", "resamples": options.resamples,
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
        labels: int [N], the class each image was asked to show, in the detector's own classes; None if it knows others.
        device: where the statistics are taken; they need float64.

    Returns:
        {score: {"value", "low", "high", "replicates"}}: fid, sfid, is (also "deviation", over splits), precision, recall
        (value only), kid, fid_inf (value only), spectrum, top1, objects.

    Raises:
        UserError: too few images, features that are NaN or all the same, a reference of another size or detector.
    """
    if features.count < 2:
        raise UserError(f"scores need at least 2 images, not {features.count}")
    scores: dict[str, dict[str, Any]] = {}

    def put(name: str, value: float, influence: Tensor, **more: Any) -> None:
        scores[name] = {**with_interval(value, influence.cpu(), options.resamples, options.level), **more}

    for name, part, there in (("fid", "features", real.features), ("sfid", "spatial", real.spatial)):
        if part in features and there is not None:
            there = there.to(device)
            here = _moments(features, part, device)
            influence = FrechetInfluence(here, there)
            put(name, max(0.0, influence.value), torch.cat([influence(x) for _, x in features.blocks(part, device)]))
            if name == "fid" and options.infinity and features.count >= FID_INFINITY_LEAST:
                scores["fid_inf"] = {"value": fid_infinity(features, there, options.infinity, device)}
    if "logits" in features:
        metric = InceptionScore(*features.widths["logits"], features.count, options.splits).to(device)
        for start, logits in features.blocks("logits", device):
            metric.update(logits, start)
        influence = torch.cat([metric.influence(logits, start) for start, logits in features.blocks("logits", device)])
        put("is", max(1.0, float(metric.compute())), influence, deviation=float(metric.per_split().std(correction=0)))
    if real.nearest is not None:
        fake = features.take("features", subset(features.count, options.nearest), device)
        near = real.nearest[torch.from_numpy(subset(len(real.nearest), options.nearest))].to(device)
        precise, recalled = precision_recall(fake, near, options.neighbours)
        precision = float(precise.double().mean())
        put("precision", precision, precise.double() - precision)
        scores["recall"] = {"value": float(recalled.double().mean())}
        put("kid", *kernel_distance(fake, near))
    if real.spectrum is not None:
        spectra = features.all("spectrum").double()
        mean = spectra.mean(dim=0)
        value, gradient = spectrum_distance(mean, real.spectrum)
        put("spectrum", value, (spectra - mean) @ gradient)
    if labels is not None and "predicted" in features:
        if len(labels) != features.count:
            raise UserError(f"there are {len(labels)} labels for {features.count} images")
        right = (features.all("predicted").long() == torch.as_tensor(np.asarray(labels))).double()
        put("top1", float(right.mean()), right - right.mean())
    if "objects" in features:
        wrong = (features.all("objects").double() - 1).abs()
        put("objects", float(wrong.mean()), wrong - wrong.mean())
    return scores


def _moments(features: Features, part: str, device: torch.device | str) -> Moments:
    metric = FrechetDistance(*features.widths[part]).to(device)
    for _, rows in features.blocks(part, device):
        metric.update(rows)
    moments = metric.moments()
    # The covariance of equal rows is rounding error, not exactly zero.
    if float(moments.sigma.trace()) <= 1e-12 * float(moments.mu.square().sum()):
        raise UserError(f"all {features.count} images have the same {part}: the samples are identical or the detector broken")
    return moments


def fid_infinity(features: Features, real: Moments, points: int = 15, device: torch.device | str = "cpu") -> float:
    """FID extrapolated to infinitely many images, from random samples of N / 10 to N images; Chong and Forsyth 2020.

    The samples are nested, each holding the one before, so that one pass over the features does; they drew theirs
    independently from the same pool.
    """
    order = np.random.RandomState(INFINITY_SEED).permutation(features.count)
    metric = FrechetDistance(*features.widths["features"]).to(device)
    sizes, values, before = infinity_sizes(features.count, points), [], 0
    for size in sizes:
        for _, rows in features.blocks_of("features", np.sort(order[before:size]), device):
            metric.update(rows)
        values.append(frechet_distance(metric.moments(), real))
        before = size
    return extrapolate(sizes, values)


# --- Anybody's files -------------------------------------------------------------------------------------------------


def score_files(
    samples: Path | str,
    reference_path: Path | str,
    detector_name: str = "inception",
    weights: str | None = None,
    device: torch.device | str = "cpu",
    batch: int = 64,
    options: Options = Options(),
    keep: Path | str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Scores files made elsewhere.

    Args:
        samples: an .npz with `arr_0`, a folder of images, or a cell's folder.
        reference_path: a reference (.npz with mu and sigma); or real images, as any of these, or shards, or "shapes".
        keep: a folder for features, so that the next run continues; None for a temporary one.

    Returns:
        {"count", "size", "detector", "reference", "scores", "uncertainty"}
    """
    images = open_images(samples)
    detector = detect.load(detector_name, weights, device)
    real = open_reference(reference_path, detector, images.size_hw, options.nearest, batch, report)
    with tempfile.TemporaryDirectory() as scratch:
        folder = features_folder(keep or scratch, detector)
        extract(images, detector, folder, batch=batch, report=report)
        scores = score(Features(folder, images), real, None, options, device)
    return {
        "count": images.count,
        "size": size_name(*images.size_hw),
        "detector": {"name": detector.name, "hash": detector.hash},
        "reference": {"hash": real.hash, "count": real.count, "source": real.meta["source"]},
        "scores": scores,
        "uncertainty": uncertainty(options),
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
    if path.suffix == ".npz":
        if not path.is_file():
            raise UserError(f"{path} is not there")
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is damaged ({error})") from None
        if "mu.npy" in names:
            return reference.load(path, detector, batch)
        source: reference.Source = open_images(path)
    elif any(path.glob("**/chunk-*.npy")):
        source = open_images(path)
    else:
        source = reference.open_source(path)
    if source.count is None:
        raise UserError(f"'{path}' has no end; python -m benchmark reference makes a reference of as many images as you ask")
    return reference.make(source, size_hw, detector, source.count, nearest, None, batch, report)
