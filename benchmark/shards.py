"""Shards: the training pictures of a data set as webdataset tars that can be addressed by number.

    source (drawn scenes, class folders, tars, parquet) -> train-000000.tar, train-000000.idx.json, ...
                                                        -> index.npy, manifest.json        once all shards are there

The tars are standard ones: two members a sample, the picture as it was found and `cls`, its label as text. The index says
where each sample lies, so that any sample of any step is one read at a known place (the order is benchmark/data.py's).
What is written depends on the source alone: never on the number of workers, on interruptions or on the clock.

Legend: N samples in the set, [h, w] pixels, y before x.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import struct
import tarfile
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark import shapes
from benchmark.files import UserError, atomic, code_version, digest, file_hash, read_json, write_json

FORMAT = 1  # of the folder and of what is written for a source; raise it when either changes
PER_SHARD = 1000  # samples; about 110 MB of ImageNet's JPEGs
TOLERANCE = 1e-3  # the share of unreadable files at which a data set is taken for damaged

ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")  # of image files
MEMBERS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")  # of images in other people's tars
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # Pillow's name of a format -> member; otherwise in lower case
# What Pillow raises on damaged pictures of the formats above.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
          zlib.error, Image.DecompressionBombError)  # fmt: skip

SHUFFLE = 0x5EED  # the key of the one order in which a source's samples are dealt to shards


def shuffled(count: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. count - 1, int64 [count], that is a function of `key` alone.

    It sorts raw words of Philox (Salmon et al. 2011), a counter-based generator. NumPy keeps a bit generator's raw stream
    for ever, but not what Generator.permutation makes of it.

    Args:
        key: up to two integers in [0, 2^64).
    """
    words = np.zeros(2, np.uint64)
    words[: len(key)] = key
    return np.argsort(np.random.Philox(key=words).random_raw(count), kind="stable")


# --- Cards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What a data set is: the fields of a file in datasets/, explained in datasets/README.md."""

    name: str
    kind: str  # shapes: drawn here; folder: written from pictures that you have; shards: already written elsewhere
    description: str = ""
    classes: tuple[str, ...] | int = 0  # names in the order of labels, or how many; 0 takes what the source has
    count: int = 0  # training images; 0 takes what the source has
    size: tuple[int, int] | None = None  # stored (h, w); None where pictures keep their own sizes
    range: tuple[int, int] = (0, 255)
    splits: dict[str, str] | None = None
    reference: str = ""
    licence: str = ""
    source: str = ""  # how to get it
    autoencoder: str = ""  # whose latents stand for its pictures: a name on the Hugging Face hub or a folder

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)


KINDS = ("shapes", "folder", "shards")


# --- Sources: where samples come from, in an order that is fixed -----------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One sample on its way into a shard. `data` is None where `trouble` says why it could not be read."""

    key: str
    label: int
    name: str  # for people
    data: bytes | None
    trouble: str = ""
    extension: str = ""  # empty: look at the data


class Source:
    """Samples in a fixed order, dealt to shards in slices. `part` gives a picklable iterable of one slice's Items."""

    kind: str
    classes: tuple[str, ...] | int
    ignored: int = 0  # files that are no pictures

    def identity(self) -> Any:
        """A JSON value that changes when the source does; cheap, so no picture is read for it."""
        raise NotImplementedError

    def prepare(self, workers: int) -> None:
        """Looks into the source. Only when shards are missing, for it may take minutes."""

    def __len__(self) -> int:
        raise NotImplementedError

    def part(self, start: int, stop: int) -> Iterable[Item]:
        raise NotImplementedError


class Drawn(Source):
    """The embedded data set: scenes of a split, drawn at the card's size."""

    kind = "shapes"

    def __init__(self, card: Card) -> None:
        if card.size is None or card.count < 1:
            raise UserError(f"card {card.name}: drawn pictures need a `size` and a `count`")
        if card.class_count != len(shapes.CLASSES):
            raise UserError(f"card {card.name}: says {card.class_count} classes; shapes has {len(shapes.CLASSES)}")
        self.classes, self.size, self.count = shapes.CLASSES, card.size, card.count

    def identity(self) -> Any:
        return [list(self.size), self.count, code_version("benchmark/shapes.py")]

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Iterable[Item]:
        return _DrawnPart(self.size, start, stop)


@dataclass(frozen=True)
class _DrawnPart:
    size: tuple[int, int]
    start: int
    stop: int

    def __iter__(self) -> Iterator[Item]:
        step = 64
        for first in range(self.start, self.stop, step):
            numbers = range(first, min(first + step, self.stop))
            for number, image in zip(numbers, shapes.render_batch("train", numbers, self.size), strict=True):
                stream = io.BytesIO()
                Image.fromarray(image).save(stream, "PNG", compress_level=1)  # small files anyway; level 1 writes fastest
                name = f"{number:08d}"
                yield Item(name, shapes.label("train", number), name, stream.getvalue(), extension="png")


class Folder(Source):
    """A tree <class>/.../<file>: ImageNet's layout, or any with one folder a class. Labels follow the sorted class names."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        with os.scandir(root) as entries:
            self.classes = tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))
        files: list[tuple[str, int, int]] = []  # (path below root, label, bytes)
        self.ignored = 0
        for label, name in enumerate(self.classes):
            for folder, folders, names in os.walk(root / name, followlinks=True):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for file in sorted(names):
                    if file.startswith("."):
                        continue
                    if not file.lower().endswith(ENDINGS):
                        self.ignored += 1
                        continue
                    path = os.path.join(folder, file)
                    # A link to nothing is a picture that cannot be read, which the manifest will say.
                    size = os.stat(path).st_size if os.path.exists(path) else -1
                    files.append((os.path.relpath(path, root).replace(os.sep, "/"), label, size))
        self.files = files
        self.order = shuffled(len(files), SHUFFLE)  # files come sorted by class; a shard has to hold many classes

    def identity(self) -> Any:
        summary = hashlib.sha256()
        for path, label, size in self.files:
            summary.update(f"{path}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
        return [len(self.files), summary.hexdigest(), list(self.classes)]

    def prepare(self, workers: int) -> None:
        self.keys = unique_keys([os.path.splitext(path)[0] for path, _, _ in self.files])

    def __len__(self) -> int:
        return len(self.files)

    def part(self, start: int, stop: int) -> Iterable[Item]:
        chosen = self.order[start:stop].tolist()
        return _FolderPart(str(self.root), [(self.keys[i], self.files[i][1], self.files[i][0]) for i in chosen])


@dataclass(frozen=True)
class _FolderPart:
    root: str
    files: list[tuple[str, int, str]]  # key, label, path

    def __iter__(self) -> Iterator[Item]:
        for key, label, path in self.files:
            try:
                data = Path(self.root, path).read_bytes()
            except OSError as error:
                yield Item(key, label, path, None, str(error.strerror))
            else:
                yield Item(key, label, path, data)


class Tars(Source):
    """Existing webdataset tars whose samples hold a picture and a label (`cls`, or `label` in `json`)."""

    kind = "tars"

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.classes = paths, 0

    def identity(self) -> Any:
        return [[path.name, path.stat().st_size] for path in self.paths]

    def prepare(self, workers: int) -> None:
        found: dict[int, list[tuple[str, int, str, int, int]]] = {}
        for number, samples in parallel(_labelled, list(enumerate(self.paths)), workers):
            found[number] = samples
        self.samples = [(number, *sample) for number in sorted(found) for sample in found[number]]
        self.keys = unique_keys([sample[1] for sample in self.samples])
        self.order = shuffled(len(self.samples), SHUFFLE)

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, start: int, stop: int) -> Iterable[Item]:
        chosen = self.order[start:stop].tolist()
        return _TarsPart([str(path) for path in self.paths], [(self.keys[i], *self.samples[i]) for i in chosen])


@dataclass(frozen=True)
class _TarsPart:
    paths: list[str]
    samples: list[tuple[str, int, str, int, str, int, int]]  # new key, tar, key, label, member, offset, bytes

    def __iter__(self) -> Iterator[Item]:
        with contextlib.ExitStack() as stack:
            opened: dict[int, Any] = {}
            for key, tar, old, label, _, offset, size in self.samples:
                if tar not in opened:
                    if len(opened) >= 64:  # a shard draws from every tar there is
                        opened.pop(next(iter(opened))).close()
                    opened[tar] = stack.enter_context(open(self.paths[tar], "rb"))
                opened[tar].seek(offset)
                yield Item(key, label, f"{os.path.basename(self.paths[tar])}:{old}", opened[tar].read(size))


class Parquet(Source):
    """Parquet files with a column of picture bytes (or of structs with `bytes`) and one of integer labels.

    Rows are read in runs: groups of rows in a shuffled order, each from first to last, since a single row costs its group.
    """

    kind = "parquet"

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.classes = paths, 0

    def identity(self) -> Any:
        return [[path.name, path.stat().st_size] for path in self.paths]

    def prepare(self, workers: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups: list[tuple[int, int, int, int]] = []  # file, group, first row of the set, rows
        total = 0
        self.columns: list[tuple[str, str]] = []
        for number, path in enumerate(self.paths):
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path} is not a whole parquet file ({str(error).splitlines()[0]})") from None
            self.columns.append(_columns(path, file.schema_arrow))
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                groups.append((number, group, total, rows))
                total += rows
        self.groups = [groups[i] for i in shuffled(len(groups), SHUFFLE).tolist()]
        self.total = total

    def __len__(self) -> int:
        return self.total

    def part(self, start: int, stop: int) -> Iterable[Item]:
        runs, at = [], 0
        for number, group, first, rows in self.groups:
            low, high = max(start - at, 0), min(stop - at, rows)
            if low < high:
                runs.append((str(self.paths[number]), self.columns[number], group, first, low, high))
            at += rows
        return _ParquetPart(runs)


@dataclass(frozen=True)
class _ParquetPart:
    runs: list[tuple[str, tuple[str, str], int, int, int, int]]

    def __iter__(self) -> Iterator[Item]:
        import pyarrow.parquet as pq

        for path, (image, target), group, first, low, high in self.runs:
            row = 0
            with pq.ParquetFile(path) as file:
                for table in file.iter_batches(batch_size=64, row_groups=[group], columns=[image, target]):
                    for i in range(max(low - row, 0), min(high - row, len(table))):
                        name = f"{os.path.basename(path)}:{first + row + i}"
                        yield self._item(name, first + row + i, table.column(0)[i].as_py(), table.column(1)[i].as_py())
                    row += len(table)
                    if row >= high:
                        break

    @staticmethod
    def _item(name: str, row: int, image: Any, label: Any) -> Item:
        if not isinstance(label, int):
            raise UserError(f"{name}: the label is {label!r}; labels must be integers")
        data = image.get("bytes") if isinstance(image, dict) else image
        return Item(f"{row:08d}", label, name, data, "" if data is not None else "holds no bytes")


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """The names of the picture's and the label's column."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    images = [field.name for field in schema if holds_bytes(field.type)]
    labels = [name for name in ("label", "labels", "cls", "class") if name in schema.names]
    if len(images) != 1 or not labels:
        raise UserError(f"{path}: needs one column of picture bytes and one called label; it has {', '.join(schema.names)}")
    return images[0], labels[0]


def source(card: Card, path: str | Path | None = None) -> Source:
    """Finds out what a path holds.

    Args:
        path: a tree of class folders, a folder of tars or of parquet files, one such file, or webdataset's brace notation
            for many; None for a card whose pictures are drawn.

    Raises:
        UserError: there is nothing usable.
    """
    if card.kind == "shapes":
        if path is not None:
            raise UserError(f"the pictures of '{card.name}' are drawn here: DATA must stay empty")
        return Drawn(card)
    if card.kind == "shards":
        raise UserError(f"'{card.name}' consists of shards that are written already: nothing to do")
    if path is None:
        raise UserError(f"'{card.name}' needs DATA, the folder of its pictures{f': {card.source}' if card.source else ''}")
    paths = [Path(path)]
    if "{" in str(path):
        import braceexpand

        paths = [Path(p) for p in braceexpand.braceexpand(str(path))]
    for each in paths:
        if not each.exists():
            raise UserError(f"DATA {each} is not there")
    if paths[0].is_dir():
        root = paths[0]
        for ending in ("tar", "parquet"):
            paths = sorted(p for p in root.glob(f"*.{ending}") if not p.name.startswith("."))
            if paths:
                break
        else:
            folder = Folder(root)
            if not folder.files:
                raise UserError(f"DATA {root} holds no pictures: expected <class>/*.JPEG, *.tar or *.parquet")
            return folder
    if all(p.suffix == ".tar" for p in paths):
        return Tars(paths)
    if all(p.suffix == ".parquet" for p in paths):
        return Parquet(paths)
    raise UserError(f"DATA {path} is neither a folder nor tars nor parquet files")


def unique_keys(names: list[str]) -> list[str]:
    """webdataset keys: `names` without dots, where a key would end, short enough for a tar header, and none twice."""
    seen: set[str] = set()
    keys = []
    for name in names:
        base = name.replace(".", "_").strip("/")
        if len(base.encode("utf-8", "surrogateescape")) > 90:  # ustar's name field holds 100 bytes, ending included
            base = f"{base[:20]}-{digest(name, 20)}"
        key, number = base, 1
        while key in seen:
            number += 1
            key = f"{base}~{number}"
        seen.add(key)
        keys.append(key)
    return keys


# --- Tars ------------------------------------------------------------------------------------------------------------


def members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where everything in a webdataset tar lies: key -> member -> (offset, bytes), in the order of the tar.

    Raises:
        UserError: the file is no tar, is compressed, or ends early.
    """
    from webdataset.tariterators import base_plus_ext

    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key, member = base_plus_ext(info.name)
                if info.isreg() and key is not None:
                    found.setdefault(key, {})[member.lower()] = (info.offset_data, info.size)
            end = tar.offset
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a whole, uncompressed tar ({error})") from None
    # Without its end mark of zeros, a tar that was cut between two members would look whole.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{path} ends early: the end mark of a tar is missing")
    return found


def _labelled(job: tuple[int, Path]) -> tuple[int, list[tuple[str, int, str, int, int]]]:
    """The samples of one tar: (key, label, member, offset, bytes). Carries the tar's number through the pool."""
    number, path = job
    samples = []
    with open(path, "rb") as file:

        def text(place: tuple[int, int]) -> bytes:
            file.seek(place[0])
            return file.read(place[1])

        for key, parts in members(path).items():
            images = [member for member in parts if member.rpartition(".")[2] in MEMBERS]
            if len(images) != 1:
                raise UserError(f"{path}: sample '{key}' has {len(images)} pictures (members: {', '.join(parts)})")
            label: Any = None
            try:
                if "cls" in parts:
                    label = int(text(parts["cls"]))
                elif "json" in parts:
                    label = json.loads(text(parts["json"])).get("label")
            except (ValueError, AttributeError):
                pass
            if not isinstance(label, int):
                raise UserError(f"{path}: sample '{key}' has no label (a member `cls`, or `label` in `json`)")
            samples.append((key, label, images[0], *parts[images[0]]))
    return number, samples


def decoded(data: bytes, extension: str) -> Image.Image:
    """The picture in `data` as RGB, by webdataset's decoder. Orientation tags are not applied (nor does ADM)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF and transparent palettes are warnings only
        return _decoder()(extension, data)


@functools.cache
def _decoder() -> Callable[[str, bytes], Image.Image]:
    from webdataset.autodecode import ImageHandler

    return ImageHandler("pilrgb")


def halved(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """`image` halved by box averages as often as it stays at least [h, w] large."""
    height, width = size_hw
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def resized(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """`image` at exactly [h, w]: box halving while that keeps it at least as large, then bicubic."""
    return halved(image, size_hw).resize(size_hw[::-1], Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """The middle of a picture at [h, w], as ADM prepares ImageNet (guided-diffusion, image_datasets.py).

    Box halving while both sides are at least twice the target, bicubic to the smallest size that covers the target, then
    the central window. For squares this is ADM's rule; covering instead of "shorter side" extends it to rectangles.
    """
    height, width = size_hw
    image = halved(image, size_hw)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _extension(data: bytes) -> str:
    """The member name that fits what `data` really is; raises one of DAMAGE unless every pixel can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            name = FORMATS.get(image.format, image.format.lower())
            image.convert("RGB")
    if name not in MEMBERS:
        raise ValueError(f"format {name} is not supported")
    return name


def parallel(function: Callable, jobs: list, workers: int) -> Iterator[Any]:
    """`function` of each job, in any order; in this process for one worker, else in a pool of fresh ones."""
    if workers <= 1:
        yield from map(function, jobs)
        return
    # Fresh processes, because forking would copy the locks of whatever threads run here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(len(jobs), 1)), context, _start_worker) as pool:
        try:
            for future in as_completed([pool.submit(function, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError("a worker process died (out of memory?): use fewer workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, which stops after the shards at hand, and ends when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- Writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What `write` has done, or found done."""

    folder: Path
    fingerprint: str
    count: int
    failures: int
    skipped: bool  # it was whole already

    def __str__(self) -> str:
        state = "whole already, skipped" if self.skipped else "written"
        lost = f", {self.failures} unreadable (listed in manifest.json)" if self.failures else ""
        return f"{self.folder}: {self.count} samples {state}{lost}"


@dataclass(frozen=True)
class _Job:
    out: str
    name: str
    part: Iterable[Item]
    classes: int


def fingerprint(card: Card, source: Source, per_shard: int = PER_SHARD) -> str:
    """Identity of the shards that `write` makes of a source."""
    return digest([FORMAT, card.name, source.kind, per_shard, source.identity()])


def prepare(card: Card, path: str | Path | None, root: str | Path, **options: Any) -> Written:
    """`write` into the folder under `root` that is named after the card and the fingerprint."""
    found = source(card, path)
    name = f"{card.name}-{fingerprint(card, found, options.get('per_shard', PER_SHARD))}"
    return write(card, found, Path(root) / name, **options)


def write(
    card: Card,
    source: Source,
    out: str | Path,
    *,
    per_shard: int = PER_SHARD,
    workers: int = 1,
    tolerance: float = TOLERANCE,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes a source as shards with an index, or finds that they are there.

    It may be killed at any time and continues with the shards that are missing.

    Args:
        card: what the data set should be; its counts are checked.
        source: from `source(card, path)`.
        out: the folder; nothing else may be in it.
        per_shard: samples in a shard.
        workers: processes.
        tolerance: the largest share of unreadable pictures.
        progress: called with (samples done, samples in all).

    Raises:
        UserError: the source is not what the card says or is damaged; `out` holds something else; no space is left.
    """
    out = Path(out)
    mark = fingerprint(card, source, per_shard)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out), _space(out):
        _own(out, mark)
        manifest = _whole(out)
        if manifest is not None:
            _tolerate(len(manifest["failures"]), manifest["samples"], tolerance, manifest["failures"])
            return Written(out, mark, manifest["count"], len(manifest["failures"]), skipped=True)

        source.prepare(workers)
        total = len(source)
        if card.count and total != card.count:
            raise UserError(
                f"the source of '{card.name}' has {total} pictures, its card says {card.count}: a subset needs a card"
            )
        classes = source.classes if isinstance(source.classes, int) else len(source.classes)
        if card.class_count and classes and classes != card.class_count:
            raise UserError(
                f"the source of '{card.name}' has {classes} classes, its card says {card.class_count}: a subset needs a card"
            )
        classes = classes or card.class_count
        names = [f"train-{number:06d}" for number in range(-(-total // per_shard))]
        jobs, done, failures = [], 0, []
        for number, name in enumerate(names):
            start, stop = number * per_shard, min((number + 1) * per_shard, total)
            entry = _entry(out, name)
            if entry is None:
                jobs.append(_Job(str(out), name, source.part(start, stop), classes))
            else:
                done += stop - start
                failures += entry["failures"]
        if progress:
            progress(done, total)
        for count, new in parallel(_write_shard, jobs, workers):
            done += count
            failures += new
            _tolerate(len(failures), total, tolerance, failures)
            if progress:
                progress(done, total)
        _tolerate(len(failures), total, tolerance, failures)
        extra = {
            "source": source.kind, "ignored": source.ignored, "kind": "images", "scale": 1.0, "classes": classes,
            "class_names": None if isinstance(source.classes, int) else list(source.classes),
        }  # fmt: skip
        count = _finish(out, names, {"card": card.name, "fingerprint": mark, "samples": total, **extra})
        return Written(out, mark, count, len(failures), skipped=False)


def _write_shard(job: _Job) -> tuple[int, list[list[str]]]:
    """Writes one shard and, last, its index: a shard counts as written when that is there."""
    from webdataset.writer import TarWriter

    path = Path(job.out) / f"{job.name}.tar"
    labels, failures, count = {}, [], 0
    with atomic(path) as draft, open(draft, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for item in job.part:
            count += 1
            if item.label < 0 or (job.classes and item.label >= job.classes):
                raise UserError(f"{item.name}: label {item.label} is not one of {job.classes} classes")
            extension, trouble = item.extension, item.trouble
            if item.data is not None and not extension:
                try:
                    extension = _extension(item.data)
                except DAMAGE as error:
                    trouble = f"{type(error).__name__}: {error}".splitlines()[0]
            if not extension:
                failures.append([item.name, trouble])
                continue
            labels[item.key] = item.label
            tar.write({"__key__": item.key, "cls": str(item.label).encode(), extension: item.data})
    write_json(_index_path(path), {**_summary(path, labels), "failures": failures})
    return count, failures


def _index_path(tar: Path) -> Path:
    return tar.with_suffix(".idx.json")


def _summary(tar: Path, labels: dict[str, int]) -> dict[str, Any]:
    """What a shard's index says of it. The tar is read back, so the places are those that other readers find."""
    samples = []
    for key, parts in members(tar).items():
        (member,) = parts.keys() - {"cls"}
        samples.append([key, labels[key], member, *parts[member]])
    assert len(samples) == len(labels)
    return {"bytes": tar.stat().st_size, "sha256": file_hash(tar), "samples": samples}


def _entry(out: Path, name: str) -> dict[str, Any] | None:
    """The index of a shard that is whole, else None."""
    tar = out / f"{name}.tar"
    if not tar.is_file() or not _index_path(tar).is_file():
        return None
    entry = read_json(_index_path(tar))
    return entry if entry["bytes"] == tar.stat().st_size else None


def _finish(out: Path, names: list[str], about: dict[str, Any]) -> int:
    """Joins the shards' indexes into one that loads at once, and writes the manifest, which makes the folder whole."""
    rows, shards, failures = [], [], []
    for name in names:
        entry = _entry(out, name)
        assert entry is not None
        rows += [tuple(sample) for sample in entry["samples"]]
        failures += entry["failures"]
        shards.append({"name": f"{name}.tar", "count": len(entry["samples"]), "bytes": entry["bytes"], "sha256": entry["sha256"]})
    if not rows:
        raise UserError(f"{out}: the source holds no readable picture")
    keys = [row[0].encode("utf-8", "surrogateescape") for row in rows]
    index = np.empty(len(rows), row_type(max(map(len, keys))))
    index["key"] = keys
    for number, column in enumerate(("label", "member", "offset", "bytes"), start=1):
        index[column] = [row[number] for row in rows]
    with atomic(out / "index.npy") as draft, open(draft, "wb") as file:
        np.save(file, index)
    counts = np.bincount(index["label"], minlength=about["classes"])
    content = digest([shard["sha256"] for shard in shards])
    write_json(out / "manifest.json", {
        "format": FORMAT, "count": len(rows), "shards": shards, "failures": failures, "content": content,
        **about, "classes": len(counts), "class_counts": counts.tolist(), "index": file_hash(out / "index.npy"),
    })  # fmt: skip
    return len(rows)


def row_type(key_bytes: int) -> np.dtype:
    """One sample in index.npy: where the bytes of its picture lie in its shard."""
    return np.dtype([("key", f"S{key_bytes}"), ("label", "<i4"), ("member", "S8"), ("offset", "<i8"), ("bytes", "<i8")])


def _own(out: Path, mark: str) -> None:
    """Makes sure that `out` belongs to this source, and removes what a killed run left half-written."""
    path = out / "source.json"
    if path.is_file():
        other = read_json(path).get("fingerprint")
        if other != mark:
            raise UserError(f"{out} holds the shards of another source ({other}, not {mark}): remove it or choose another folder")
    elif any(out.glob("*.tar")):
        raise UserError(f"{out} holds tars that were not written here: choose another folder")
    else:
        write_json(path, {"fingerprint": mark, "format": FORMAT})
    for draft in out.glob(".*.part"):
        shutil.rmtree(draft)


def _whole(out: Path) -> dict[str, Any] | None:
    """The manifest, if all that it lists is there in full."""
    if not (out / "manifest.json").is_file() or not (out / "index.npy").is_file():
        return None
    manifest = read_json(out / "manifest.json")
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(out)}
    return manifest if all(sizes.get(shard["name"]) == shard["bytes"] for shard in manifest["shards"]) else None


def _tolerate(count: int, total: int, tolerance: float, failures: list[list[str]]) -> None:
    if count > tolerance * total:
        name, trouble = failures[0]
        raise UserError(
            f"{count} of {total} pictures are unreadable so far, more than {tolerance:.2%}; the first: {name} ({trouble})"
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds a folder against a second writer. The system lets go of it when the process ends, however it ends."""
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing {out}: wait for it") from None
        yield


@contextlib.contextmanager
def _space(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {out}: free some and run the same command again, it continues") from None
        raise


# --- Addressing ------------------------------------------------------------------------------------------------------


class Damaged(UserError):
    """One sample cannot be used; the message names shard and key."""


@dataclass(frozen=True)
class Sample:
    """One sample as it lies in its shard."""

    key: str
    label: int
    shard: str
    member: str  # png, jpg, ... or npy
    data: bytes


class Index:
    """A folder of shards as a sequence of samples, numbered in the order of its shards.

    It pickles as a path, and opens files when a process first reads from them.

    Args:
        folder: what `write` or `latents` has written.

    Raises:
        UserError: the folder is missing, empty, without index, or a shard is missing or not as long as its index says.
    """

    OPEN_FILES = 64

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        again = "write it with `python -m benchmark shards`"
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not there: {again}")
        if not (self.folder / "manifest.json").is_file():
            some = any(self.folder.glob("*.tar"))
            raise UserError(f"{self.folder} {'has tars but no index (manifest.json)' if some else 'holds no shards'}: {again}")
        self.manifest = read_json(self.folder / "manifest.json")
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise UserError(f"{self.folder}/manifest.json is not of format {FORMAT}: {again}")
        self._open()
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}
        for shard in self.manifest["shards"]:
            size = sizes.get(shard["name"])
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes where its index says {shard['bytes']}"
                raise UserError(f"{self.folder}/{shard['name']} {state}: run `python -m benchmark shards` again")

    def _open(self) -> None:
        path = self.folder / "index.npy"
        try:
            self.rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): run `python -m benchmark shards` again") from None
        if len(self.rows) != self.manifest["count"]:
            count = self.manifest["count"]
            raise UserError(f"{path} has {len(self.rows)} samples, manifest.json {count}: run `python -m benchmark shards` again")
        self.counts = np.array([shard["count"] for shard in self.manifest["shards"]], np.int64)
        self.starts = np.cumsum(self.counts) - self.counts  # the first sample of each shard
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def kind(self) -> str:
        """What the samples are: "images" or "latents"."""
        return self.manifest["kind"]

    @property
    def classes(self) -> int:
        return self.manifest["classes"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    def where(self, number: int) -> tuple[int, str, str]:
        """(shard number, shard name, key) of a sample."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        # Empty shards start where the next one does; side="right" finds the last of them, which holds the sample.
        return (
            shard,
            self.manifest["shards"][shard]["name"],
            self.rows["key"][number].decode("utf-8", "surrogateescape"),
        )

    def __getitem__(self, number: int) -> Sample:
        """One sample.

        Raises:
            UserError: the shard does not hold it where the index says; names shard and key.
        """
        shard, name, key = self.where(number)
        _, label, member, offset, size = self.rows[number].item()
        member = member.decode()
        header = tarfile.BLOCKSIZE
        block = os.pread(self._descriptor(shard), header + size, offset - header)
        if not _is_member(block[:header], f"{key}.{member}", size) or len(block) != header + size:
            raise Damaged(f"{self.folder}/{name}: sample '{key}' is damaged or not where the index says")
        return Sample(key, label, name, member, block[header:])

    def _descriptor(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self.folder / self.manifest["shards"][shard]["name"]
        if len(self._files) >= self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[shard] = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path} has gone: run `python -m benchmark shards` again") from None
        return self._files[shard]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def _is_member(header: bytes, name: str, size: int) -> bool:
    """Whether a tar header is that of the named file."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.name == name and info.size == size
