"""Images from any source as a stream of units: chunks of a cell, an evaluator's .npz, a folder of images; and export to .npz."""

from __future__ import annotations

import functools
import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from benchmark.data.images import DAMAGE, IMAGE_SUFFIXES, identified
from benchmark.data.tars import members, write_contents
from benchmark.files import UserError, atomic, below, digest, listed, read_fields, shown, walk
from benchmark.protocol import size_name

UNIT_BYTES, UNIT_IMAGES = 1 << 27, 500  # limits of a run of images that is read as one: 128 MiB of pixels, 500 images
# Also what zipfile says of encryption and unknown compression, and NumPy of a header that is no Python.
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError, tokenize.TokenError)


# --- Images that are of one size already -----------------------------------------------------------------------------


@dataclass
class Unit:
    """A run of images that is read, scored and written as one."""

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
    if path.suffix.lower() == ".npz":
        return _open_npz(path)
    if not path.is_dir():
        what = "is neither a folder nor an .npz" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; samples are a cell's folder, an .npz with arr_0, or a folder of images")
    done = read_fields(path / "samples.json", "count") if (path / "samples.json").is_file() else {}
    if same := done.get("same_as"):  # a cell whose images are those of another one
        return open_images(below(path.parent, str(same)))
    if folder := chunks_folder(path):
        images = _open_chunks(folder)
        if images.count != done.get("count", images.count):
            raise UserError(f"{path} holds {images.count} images of {done['count']}: sample the cell again with --keep")
        return images
    return _open_pictures(path)


def chunks_folder(path: Path) -> Path | None:
    """Where the chunks of a cell's folder lie, or of a folder of chunks; None for any other folder."""
    return next((folder for folder in (path / "chunks", path) if any(folder.glob(f"chunk-*{CHUNK_ENDING}"))), None)


def check_layout(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Raises UserError unless images are uint8 [n, H, W, 3]."""
    if dtype != np.uint8:
        raise UserError(f"{where} holds {dtype}, images must be uint8 (0 to 255)")
    if len(shape) != 4 or shape[3] != 3:
        hint = ": that is NCHW, transpose it to NHWC" if len(shape) == 4 and shape[1] == 3 else ""
        raise UserError(f"{where} has the shape {list(shape)}, images must be [n, height, width, 3]{hint}")
    if 0 in shape[1:]:
        raise UserError(f"{where} has the shape {list(shape)}: images without pixels")


# --- A cell's images on disk: webdataset tars of lossless pictures ---------------------------------------------------

CHUNK_ENDING = ".tar"


def chunk_name(number: int) -> str:
    return f"chunk-{number:05}{CHUNK_ENDING}"


def write_chunk(path: Path, images: np.ndarray, first: int) -> None:
    """Writes images, uint8 [n, H, W, 3], as a tar of PNG files that are named by their numbers from `first` on."""
    write_contents(path, ({"__key__": f"{number:06}", "png": _png(image)} for number, image in enumerate(images, first)))


def _png(image: np.ndarray) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, format="PNG")
    return picture.getvalue()


def _places(path: Path) -> list[tuple[int, int]]:
    """Where the pictures of a chunk lie: (offset, bytes) of each, in order.

    Raises:
        UserError: it is no complete tar of pictures.
    """
    found = members(path)
    strange = [key for key, parts in found.items() if parts.keys() != {"png"}]
    if strange or not found:
        what = f"{shown(strange[0])}, which is no picture" if strange else "no images"
        raise UserError(f"{path} holds {what}; remove it and sample the cell again")
    return [parts["png"] for parts in found.values()]


def chunk_shape(path: Path) -> tuple[int, int, int]:
    """(n, H, W) of a chunk, from its directory and the head of its first picture.

    Raises:
        UserError: it is no complete tar of pictures.
    """
    places = _places(path)
    offset, size = places[0]
    with open(path, "rb") as file:
        file.seek(offset)
        head = io.BytesIO(file.read(size))
    try:
        with Image.open(head) as image:
            return len(places), image.height, image.width
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}); remove it and sample the cell again") from None


def read_chunk(path: Path) -> np.ndarray:
    """The images of a chunk, uint8 [n, H, W, 3]."""
    images: list[np.ndarray] = []
    with open(path, "rb") as file:
        for offset, size in _places(path):
            file.seek(offset)
            images.append(np.asarray(open_image(io.BytesIO(file.read(size)), f"picture {len(images)} of {path}")))
            _check_size(images[0].shape[:2], images[-1].shape[:2], path)
    return np.stack(images)


def _stamp(path: Path) -> str:
    state = path.stat()
    return digest([path.name, state.st_size, state.st_mtime_ns])


def _open_chunks(folder: Path) -> Images:
    files = sorted(folder.glob(f"chunk-*{CHUNK_ENDING}"))
    units, size, start = [], None, 0
    for k, file in enumerate(files):
        if file.name != chunk_name(k):
            raise UserError(f"{folder}/{chunk_name(k)} is missing; sample the cell again, finished chunks are kept")
        count, *picture = chunk_shape(file)
        size = size or tuple(picture)
        _check_size(size, picture, file)
        units.append(Unit(start, count, _stamp(file), functools.partial(read_chunk, file)))
        start += count
    return Images(place_name(folder.parent if folder.name == "chunks" else folder), size, units, file_list_hash(folder, files))


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
            raise UserError(f"{path} does not exist")
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
    return Images(place_name(folder), size, units, file_list_hash(folder, files))


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
    """Every image below a folder, sorted by path; the same ones as a data set takes from it (`data.sources.Folder`)."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = sorted(Path(place, name) for place, names in walk(folder) for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    if lost := [file for file in found if not file.exists()]:
        raise UserError(f"{listed(lost)}: a link to nothing")
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{folder} holds no images (looked for {', '.join(IMAGE_SUFFIXES)})")
    return found


def place_name(path: Path) -> str:
    """The name of a folder, also of one that is given as "." or with a slash at its end."""
    return os.path.basename(os.path.abspath(path)) or "images"


def file_list_hash(folder: Path, files: list[Path]) -> str:
    """Names and sizes of files: what distinguishes data sets without reading them."""
    return digest([[str(file.relative_to(folder)), file.stat().st_size] for file in files])


def open_image(file: Path | io.BytesIO, name: str | None = None) -> Image.Image:
    """A decoded RGB image; a UserError names the file that cannot be read."""
    try:
        with identified(), Image.open(file) as image:
            mode, picture = image.mode, image.convert("RGB")
    except DAMAGE as error:
        raise UserError(f"{name or file} is not a readable image ({error})") from None
    if mode.startswith(("I", "F")):  # Pillow does not scale these, it cuts off at 255
        raise UserError(f"{name or file} has more than 8 bits a channel (Pillow's mode {mode}); save it with 8")
    return picture
