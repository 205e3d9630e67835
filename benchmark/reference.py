"""Reference statistics: what real images of a size look like to a detector, made once and cached.

A reference is an .npz whose keys `mu`, `sigma`, `mu_s` and `sigma_s` are those of guided-diffusion's references, so that
either can be used in the other's place; ours also hold the features of some images (for precision, recall and KID), the
mean log spectrum, and in `meta` how many images they were made of and from what.
"""

from __future__ import annotations

import functools
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from benchmark import shapes
from benchmark.detect import Detector, log_spectrum
from benchmark.files import UserError, atomic, code_version, digest, file_hash, read_json
from benchmark.metrics import FrechetDistance, Moments
from benchmark.pictures import DAMAGE, center_crop
from benchmark.protocol import size_name
from benchmark.shards import ENDINGS, Index

FOLDER = Path("runs/references")
CODE = tuple(f"benchmark/{name}.py" for name in ("reference", "detect", "classifier"))
WORKERS = 8  # threads that decode and resize
UNIT_BYTES, UNIT_IMAGES = 1 << 27, 500  # limits of a run of images that is read as one: 128 MiB of pixels, 500 images
SUBSET_SEED = 0
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError)


# --- Images that are of one size already -----------------------------------------------------------------------------


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

    def __init__(self, name: str, size_hw: tuple[int, int], units: list[Unit], identity: str):
        self.name, self.size_hw, self.units, self.hash = name, size_hw, units, identity
        self.count = sum(unit.count for unit in units)

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
            images = _open_chunks(folder)
            done = path / "samples.json"
            if done.is_file() and images.count != (count := read_json(done)["count"]):
                raise UserError(f"{path} holds {images.count} images of {count}: sample the cell again")
            return images
    return _open_pictures(path)


def check_layout(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Raises UserError unless images are uint8 [n, H, W, 3]."""
    if dtype != np.uint8:
        raise UserError(f"{where} holds {dtype}, images must be uint8 (0 to 255)")
    if len(shape) != 4 or shape[3] != 3:
        hint = ": that is NCHW, transpose it to NHWC" if len(shape) == 4 and shape[1] == 3 else ""
        raise UserError(f"{where} has the shape {list(shape)}, images must be [n, height, width, 3]{hint}")
    if 0 in shape[1:]:
        raise UserError(f"{where} has the shape {list(shape)}: images without pixels")


def _stamp(path: Path) -> str:
    state = path.stat()
    return digest([path.name, state.st_size, state.st_mtime_ns])


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
    return Images(folder.parent.name if folder.name == "chunks" else folder.name, size, units, file_list_hash(folder, files))


def _check_size(first: Sequence[int], size: Sequence[int], where: Path) -> None:
    if tuple(first) != tuple(size):
        raise UserError(f"{where} is {size_name(*size)}, the images before it are {size_name(*first)}; all must be of one size")


def unit_length(height: int, width: int) -> int:
    """How many images of a size make a unit."""
    return max(1, min(UNIT_IMAGES, UNIT_BYTES // (height * width * 3)))


class _Npz:
    """The member arr_0 of an .npz, read piece by piece: it may be larger than memory.

    It stays open, so that reading on is cheap in a compressed file too; going back there means starting anew.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} is not there")
        try:
            archive = zipfile.ZipFile(path)  # stays open
            self.member = archive.open("arr_0.npy")
            version = npy.read_magic(self.member)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, fortran, dtype = header(self.member)
        except KeyError:
            there = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise UserError(f"{path} has no array arr_0, where an evaluator's .npz holds its images (it has: {there})") from None
        except (*DAMAGED_ZIP, ValueError, OSError) as error:
            raise UserError(f"{path} is damaged ({error})") from None
        check_layout(self.shape, dtype, str(path))
        if fortran:
            raise UserError(f"{path} is in Fortran order; save a C-ordered array")
        self.offset = self.member.tell()

    def read(self, start: int, count: int) -> np.ndarray:
        total, *picture = self.shape
        size = math.prod(picture)
        try:
            self.member.seek(self.offset + start * size)
            data = self.member.read(count * size)
        except DAMAGED_ZIP as error:
            raise UserError(f"{self.path} is damaged ({error})") from None
        if len(data) != count * size:
            raise UserError(f"{self.path} is damaged: it ends after image {start + len(data) // size} of {total}")
        return np.frombuffer(data, np.uint8).reshape(count, *picture)


def _open_npz(path: Path) -> Images:
    file = _Npz(path)
    total, height, width, _ = file.shape
    if not total:
        raise UserError(f"{path} holds no images")
    with zipfile.ZipFile(path) as archive:
        content = archive.getinfo("arr_0.npy").CRC
    units = [
        Unit(start, count, digest([content, start, count]), functools.partial(file.read, start, count))
        for start, count in _runs(total, unit_length(height, width))
    ]
    return Images(path.stem, (height, width), units, digest([content, list(file.shape)]))


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
    return Images(folder.name, size, units, file_list_hash(folder, files))


def _picture(file: Path) -> np.ndarray:
    return np.asarray(open_image(file))


def export_npz(images: Images, path: Path | str) -> None:
    """Writes images as the evaluator's .npz (`arr_0`, uint8 NHWC, stored), unit by unit: memory does not grow with N."""
    if Path(path).suffix != ".npz" or Path(path).is_dir():
        raise UserError(f"{path} cannot be written: give the name of a file that ends in .npz")
    shape = (images.count, *images.size_hw, 3)
    with (
        atomic(path) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for batch in images.batches():
            member.write(np.ascontiguousarray(batch).data)


def image_files(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by path."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
    if not found:
        raise UserError(f"{folder} holds no images (looked for {', '.join(ENDINGS)})")
    return found


def file_list_hash(folder: Path, files: list[Path]) -> str:
    """Names and sizes of files: what tells data sets apart without reading them."""
    return digest([[str(file.relative_to(folder)), file.stat().st_size] for file in files])


def open_image(file: Path | io.BytesIO, name: str | None = None) -> Image.Image:
    """A decoded RGB image; a UserError names the file that cannot be read."""
    try:
        with Image.open(file) as image:
            mode, picture = image.mode, image.convert("RGB")
    except DAMAGE as error:
        raise UserError(f"{name or file} is not a readable image ({error})") from None
    if mode.startswith(("I", "F")):  # Pillow does not scale these, it cuts off at 255
        raise UserError(f"{name or file} has more than 8 bits a channel (Pillow's mode {mode}); save it with 8")
    return picture


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
    """The embedded data set's reference split, drawn natively at the size."""

    name = "shapes"
    count = None

    def __init__(self) -> None:
        self.hash = shapes.REVISION

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        for start in range(0, len(indices), 64):
            for picture in shapes.render_batch("reference", indices[start : start + 64], size_hw):
                yield picture, False


class ImageFolder:
    """All images below a folder, in the order of their paths; cut to size by guided-diffusion's centre crop."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.files = image_files(self.path)
        self.name, self.count = self.path.name, len(self.files)
        self.hash = file_list_hash(self.path, self.files)

    def pictures(self, indices: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
        return _threaded(lambda i: _cut(open_image(self.files[i]), size_hw), iter(indices.tolist()))


class Shards:
    """The images of a data set written by `python -m benchmark shards`; cut to size by guided-diffusion's centre crop."""

    def __init__(self, path: Path | str):
        self.index = Index(path)
        if self.index.kind != "images":
            raise UserError(f"{path} holds {self.index.kind}; references are made from the images themselves")
        self.name, self.count, self.hash = Path(path).name, len(self.index), self.index.fingerprint

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
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; references are made from 'shapes', a folder of shards or one of images")
    return Shards(path) if any(path.glob("*.tar")) or (path / "manifest.json").is_file() else ImageFolder(path)


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


def subset(total: int, count: int) -> np.ndarray:
    """`count` of `total` positions, ascending and chosen at random once and for all: never the first classes of a file."""
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.RandomState(SUBSET_SEED).permutation(total)[:count])


def identity(source: Source, size_hw: tuple[int, int], detector: Detector, count: int, nearest: int) -> str:
    """The hash of all that decides what a reference holds, up to rounding: the same on every machine."""
    return digest([source.name, source.hash, size_name(*size_hw), detector.name, detector.hash, count, nearest])


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
        name = f"{source.name}-{size_name(*size_hw)}-{detector.name}-{count}-{key}-{code_version(*CODE)[:6]}.npz"
        path = Path(folder) / name
        if path.is_file():
            return load(path, detector)
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


def load(path: Path | str, detector: Detector, batch: int = 64) -> Reference:
    """A reference from an .npz: one of ours, or one of guided-diffusion's as it is.

    guided-diffusion's hold images (`arr_0`) instead of features; they go through the detector here. How many images its
    moments were made of is not in the file.

    Raises:
        UserError: the file is not there or damaged, or belongs to another detector.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there; python -m benchmark reference makes references")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files if key not in ("meta", "arr_0")}
            meta = json.loads(str(file["meta"])) if "meta" in file.files else None
            holds_images = "arr_0" in file.files
    except (*DAMAGED_ZIP, ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable reference ({error})") from None
    if meta is not None and not (isinstance(meta, dict) and {"hash", "count", "source", "size", "detector"} <= meta.keys()):
        raise UserError(f"{path} is not a readable reference (its meta was not written by python -m benchmark reference)")
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} holds no mean and covariance (mu, sigma), so it is not a reference")
    width = detector.widths["features"]
    if arrays["mu"].numel() != width:
        raise UserError(f"{path} is for features of width {arrays['mu'].numel()}, detector '{detector.name}' has {width}")
    if meta is None:
        if detector.name != "inception":
            raise UserError(f"{path} is a reference of guided-diffusion, which is for detector 'inception' only")
        meta = {"hash": file_hash(path)[:12], "count": None, "source": path.name, "upsampled": None, "size": None,
                "detector": {"name": detector.name, "hash": detector.hash}}  # fmt: skip
        if holds_images:
            images = open_images(path)
            meta["size"] = size_name(*images.size_hw)
            seen = [_look(part, detector) for unit in images.batches() for part in np.array_split(unit, -(-len(unit) // batch))]
            arrays["nearest"] = torch.cat([features for features, _ in seen])
            arrays["spectrum"] = torch.cat([spectra for _, spectra in seen]).double().mean(dim=0)
    elif meta["detector"] != {"name": detector.name, "hash": detector.hash}:
        theirs = meta["detector"]
        raise UserError(
            f"{path} was made with detector {theirs['name']} {theirs['hash']}, not {detector.name} {detector.hash}: "
            "features of two detectors cannot be compared"
        )
    return Reference(
        features=Moments(arrays["mu"], arrays["sigma"], meta["count"]),
        spatial=Moments(arrays["mu_s"], arrays["sigma_s"], meta["count"]) if {"mu_s", "sigma_s"} <= arrays.keys() else None,
        nearest=arrays.get("nearest"),
        spectrum=arrays.get("spectrum"),
        meta=meta,
    )


def _look(images: np.ndarray, detector: Detector) -> tuple[Tensor, Tensor]:
    """Features and log spectra of uint8 images [n, H, W, 3], on the CPU."""
    batch = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(detector.device)
    return detector(batch)["features"].cpu(), log_spectrum(batch).cpu()
