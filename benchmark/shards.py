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
import fcntl
import functools
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark import shapes
from benchmark.files import UserError, atomic, digest, file_hash, is_full, read_json, write_array, write_json
from benchmark.pictures import DAMAGE, center_crop, decoded, shuffled

FORMAT = 1  # of the folder and of what is written for a source; raise it when either changes
PER_SHARD = 1000  # samples; about 110 MB of ImageNet's JPEGs
TOLERANCE = 1e-3  # the share of unreadable files at which a data set is taken for damaged

ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")  # of image files
MEMBERS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")  # of images in other people's tars
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # Pillow's name of a format -> member; otherwise in lower case
SHUFFLE = 0x5EED  # the key of the one order in which a source's samples are dealt to shards


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
        return [list(self.size), self.count, shapes.REVISION]

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
        if not hasattr(self, "samples"):
            self.prepare(1)
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
        if not hasattr(self, "groups"):
            self.prepare(1)
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
    runs: list[tuple[str, tuple[str, str], int, int, int, int]]  # path, columns, group, its first row, from, to

    def __iter__(self) -> Iterator[Item]:
        import pyarrow.parquet as pq

        for path, (image, target), group, first, low, high in self.runs:
            row = 0
            with pq.ParquetFile(path) as file:
                for table in file.iter_batches(batch_size=64, row_groups=[group], columns=[image, target]):
                    images, labels = table.column(image), table.column(target)
                    for i in range(max(low - row, 0), min(high - row, len(table))):
                        number = first + row + i
                        yield self._item(f"{os.path.basename(path)}:{number}", number, images[i].as_py(), labels[i].as_py())
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


def _extension(data: bytes) -> str:
    """The member name that fits what `data` really is; raises one of DAMAGE unless every pixel can be read."""
    with Image.open(io.BytesIO(data)) as image:
        name = FORMATS.get(image.format, image.format.lower())
        mode = image.mode
    if name not in MEMBERS:
        raise ValueError(f"format {name} is not supported")
    if mode[0] in "IF":  # Pillow would cut them off at 255
        raise ValueError(f"pixels of mode {mode} have more than 8 bits")
    decoded(data, name)
    return name


def parallel(function: Callable, jobs: list, workers: int, devices: Sequence[str] = ()) -> Iterator[Any]:
    """`function` of each job, in any order; in this process for one worker, else in a pool of fresh ones.

    Args:
        devices: one for each worker, which finds its own in _DEVICE.
    """
    if workers <= 1:
        _DEVICE[:] = devices
        yield from map(function, jobs)
        return
    # Fresh processes, because forking would copy the locks of whatever threads run here.
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for name in devices:
        queue.put(name)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (queue if devices else None,))
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError("a worker process died (out of memory?): use fewer workers") from None
    except BaseException:  # Ctrl-C above all: what the workers are at may take minutes, and can be done again
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_DEVICE: list[str] = []  # what this process computes on, where that matters


def _start_worker(queue: Any) -> None:
    """Leaves Ctrl-C to the parent, which ends its workers, and ends when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if queue is not None:
        _DEVICE[:] = [queue.get()]


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


def prepare(card: Card, path: str | Path | Source | None, root: str | Path, **options: Any) -> Written:
    """`write` into the folder under `root` that is named after the card and the fingerprint."""
    found = path if isinstance(path, Source) else source(card, path)
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
    with _claimed(Path(out), fingerprint(card, source, per_shard), tolerance, progress) as work:
        if work.done:
            return work.done
        source.prepare(workers)
        total = len(source)
        classes = source.classes if isinstance(source.classes, int) else len(source.classes)
        for found, said, what in ((total, card.count, "pictures"), (classes, card.class_count, "classes")):
            if found and said and found != said:
                raise UserError(
                    f"'{card.name}': the source has {found} {what}, the card says {said}; a subset needs its own card"
                )
        classes = classes or card.class_count
        names = [f"train-{number:06d}" for number in range(-(-total // per_shard))]
        bounds = [(start, min(start + per_shard, total)) for start in range(0, total, per_shard)]
        missing = work.missing(names, [stop - start for start, stop in bounds])
        jobs = [_Job(str(work.out), names[i], source.part(*bounds[i]), classes) for i in missing]
        work.collect(parallel(_write_shard, jobs, workers))
        return work.finish({
            "card": card.name, "kind": "images", "classes": classes,
            "class_names": None if isinstance(source.classes, int) else list(source.classes),
            "source": source.kind, "ignored": source.ignored,
        })  # fmt: skip


class _Work:
    """A folder being written: which shards are there, how many samples, how many of them unreadable."""

    def __init__(self, out: Path, mark: str, tolerance: float, progress: Callable[[int, int], None] | None) -> None:
        self.out, self.mark, self.tolerance, self.progress = out, mark, tolerance, progress
        self.failures: list[list[str]] = []
        self.names: list[str] = []
        self.count = self.total = 0
        self.done: Written | None = None
        manifest = _whole(out)
        if manifest is not None:
            self.failures, self.total = manifest["failures"], manifest["samples"]
            self._tolerate()
            self.done = Written(out, mark, manifest["count"], len(self.failures), skipped=True)

    def missing(self, names: list[str], counts: list[int]) -> list[int]:
        """The numbers of the shards that have yet to be written, of all that there will be."""
        self.names, self.total = names, sum(counts)
        numbers = []
        for number, (name, count) in enumerate(zip(names, counts, strict=True)):
            entry = _entry(self.out, name)
            if entry is None:
                numbers.append(number)
            else:
                self.count += count
                self.failures += entry["failures"]
        self._tell()
        return numbers

    def collect(self, results: Iterable[tuple[int, list[list[str]]]]) -> None:
        """Follows the writing of shards, each told by its samples and failures."""
        for count, failures in results:
            self.count += count
            self.failures += failures
            self._tell()

    def finish(self, about: dict[str, Any]) -> Written:
        """Joins the shards' indexes into one that loads at once, and writes the manifest, which makes the folder whole."""
        rows, shards, failures = [], [], []
        for name in self.names:
            entry = _entry(self.out, name)
            assert entry is not None
            rows += [tuple(sample) for sample in entry["samples"]]
            failures += entry["failures"]
            about_shard = {key: entry[key] for key in ("bytes", "sha256")}
            shards.append({"name": f"{name}.tar", "count": len(entry["samples"]), **about_shard})
        if not rows:
            raise UserError(f"{self.out}: the source holds no readable picture")
        keys = [row[0].encode("utf-8", "surrogateescape") for row in rows]
        index = np.empty(len(rows), row_type(max(map(len, keys))))
        index["key"] = keys
        for number, column in enumerate(("label", "member", "offset", "bytes"), start=1):
            index[column] = [row[number] for row in rows]
        write_array(self.out / "index.npy", index)
        counts = np.bincount(index["label"], minlength=about["classes"])
        write_json(self.out / "manifest.json", {
            **about, "format": FORMAT, "fingerprint": self.mark, "count": len(rows), "samples": self.total,
            "shards": shards, "failures": failures, "content": digest([shard["sha256"] for shard in shards]),
            "classes": len(counts), "class_counts": counts.tolist(), "index": file_hash(self.out / "index.npy"),
        })  # fmt: skip
        return Written(self.out, self.mark, len(rows), len(failures), skipped=False)

    def _tell(self) -> None:
        self._tolerate()
        if self.progress:
            self.progress(self.count, self.total)

    def _tolerate(self) -> None:
        if len(self.failures) > self.tolerance * self.total:
            name, trouble = self.failures[0]
            raise UserError(
                f"{len(self.failures)} of {self.total} pictures are unreadable so far, more than {self.tolerance:.2%}; "
                f"the first: {name} ({trouble})"
            )


@contextlib.contextmanager
def _claimed(out: Path, mark: str, *options: Any) -> Iterator[_Work]:
    """Makes `out` ours for a while: against a second writer, another source, leftovers of a killed run, and full disks."""
    out.mkdir(parents=True, exist_ok=True)
    if _belongs(out, mark) and _whole(out):
        yield _Work(out, mark, *options)  # nothing to write, so any number of processes may look
        return
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however the process ends
        except BlockingIOError:
            logging.getLogger(__name__).warning("waiting for another process that writes %s", out)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if not _belongs(out, mark):
                write_json(out / "source.json", {"fingerprint": mark, "format": FORMAT})
            _sweep(out)
            yield _Work(out, mark, *options)
        except OSError as error:
            if is_full(error):
                raise UserError(f"no space left for {out}: free some and run it again, it continues") from None
            raise
        finally:
            _sweep(out)


def _sweep(out: Path) -> None:
    """Removes what a killed process left half-written."""
    for draft in out.glob(".*.part"):
        shutil.rmtree(draft)


def _belongs(out: Path, mark: str) -> bool:
    """Whether the folder is this source's; False if it is nobody's, and a UserError if it is another one's."""
    if (out / "source.json").is_file():
        other = read_json(out / "source.json").get("fingerprint")
        if other != mark:
            raise UserError(f"{out} holds the shards of another source ({other}, not {mark}): choose another folder")
        return True
    if any(out.glob("*.tar")):
        raise UserError(f"{out} holds tars that were not written here: choose another folder")
    return False


def _write_shard(job: _Job) -> tuple[int, list[list[str]]]:
    """Writes one shard of a source; returns its samples and failures."""
    failures: list[list[str]] = []
    count = 0

    def samples() -> Iterator[tuple[str, int, str, bytes]]:
        nonlocal count
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
            if extension:
                yield item.key, item.label, extension, item.data
            else:
                failures.append([item.name, trouble])

    write_tar(Path(job.out) / f"{job.name}.tar", samples(), failures)
    return count, failures


def write_tar(path: Path, samples: Iterable[tuple[str, int, str, bytes]], failures: list[list[str]]) -> None:
    """Writes a tar of (key, label, member, data) and, last, its index: a shard counts as written when that is there.

    Args:
        failures: (name, reason) of what is not in it; may grow while `samples` is consumed.
    """
    from webdataset.writer import TarWriter

    labels = {}
    with atomic(path) as draft, open(draft, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, label, member, data in samples:
            labels[key] = label
            tar.write({"__key__": key, "cls": str(label).encode(), member: data})
    write_json(_index_path(path), {**_summary(path, labels), "failures": failures})


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
    if not tar.is_file():
        return None
    entry = _read(_index_path(tar))
    return entry if entry and entry["bytes"] == tar.stat().st_size else None


def _read(path: Path) -> Any:
    """The JSON value in a file; None where it is not there or damaged, so that it is written anew."""
    try:
        return read_json(path)
    except UserError:
        return None


def row_type(key_bytes: int) -> np.dtype:
    """One sample in index.npy: where the bytes of its picture lie in its shard."""
    return np.dtype([("key", f"S{key_bytes}"), ("label", "<i4"), ("member", "S8"), ("offset", "<i8"), ("bytes", "<i8")])


def _whole(out: Path) -> dict[str, Any] | None:
    """The manifest, if all that it lists is there in full."""
    manifest, index = _read(out / "manifest.json"), out / "index.npy"
    if not manifest or not index.is_file() or file_hash(index) != manifest["index"]:
        return None
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(out)}
    return manifest if all(sizes.get(shard["name"]) == shard["bytes"] for shard in manifest["shards"]) else None


# --- Addressing ------------------------------------------------------------------------------------------------------


REMOTE = re.compile(r"pipe:|[a-z0-9+]+://")
CACHE = Path("runs/cache")
CACHE_BYTES = 64 << 30


@dataclass(frozen=True)
class Remote:
    """Files behind a URL or a command, through a local cache of bounded size.

    Args:
        location: of the folder: http(s)://, s3://, gs:// or anything else that fsspec knows, or "pipe:COMMAND" with {} for
            the name of a file, such as "pipe:ssh host cat /shards/{}".
        cache: local folder, shared by all processes of this machine.
        limit: bytes of shards in it; the least recently used go first.
        tries: how often a file is asked for, with growing pauses that begin at `pause` seconds.
    """

    location: str
    cache: Path
    limit: int
    tries: int = 4
    pause: float = 1.0

    @property
    def folder(self) -> Path:
        return self.cache / digest(self.location)

    def fetch(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A local copy of a file: the cached one if `size` is given and fits, else a new one whose hash is checked.

        Raises:
            UserError: the source is gone or gives something else, after all tries; or no room.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process fetches, the others wait for it
            if size is not None and path.is_file() and path.stat().st_size == size:
                os.utime(path)
                return path
            self._make_room(size or 0)
            for attempt in range(self.tries):
                time.sleep(self.pause * 2 ** (attempt - 1) if attempt else 0)
                try:
                    with atomic(path) as draft:
                        self._copy(name, draft)
                        if sha256 is not None and file_hash(draft) != sha256:
                            raise OSError(f"what came is not what the manifest lists ({draft.stat().st_size} bytes)")
                    return path
                except self._errors() as error:
                    if is_full(error):
                        raise UserError(f"no space left for {self.cache}: lower the cache's limit or free some") from None
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot be read from {self.location} after {self.tries} tries ({reason})")

    def _errors(self) -> tuple[type[Exception], ...]:
        """What a bad connection raises."""
        if not self.location.startswith("http"):
            return (OSError,)
        import aiohttp

        return (OSError, aiohttp.ClientError)

    def _copy(self, name: str, path: Path) -> None:
        if self.location.startswith("pipe:"):
            from webdataset.gopen import gopen

            with gopen(self.location.replace("{}", name)) as stream, open(path, "wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
            return
        import fsspec

        try:
            source = fsspec.open(f"{self.location.rstrip('/')}/{name}", "rb")
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.location} cannot be opened: {str(error).splitlines()[0]}") from None
        with source as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)

    def _make_room(self, size: int) -> None:
        """Removes shards until `size` bytes more stay within the limit. Who has one open can go on reading it."""
        if size > self.limit:
            raise UserError(f"a shard of {size} bytes does not fit into a cache of {self.limit}")
        found = []
        for path in self.cache.glob("*/*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if total + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= bytes_


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

    It pickles without its table, and opens files when a process first reads from them.

    Args:
        folder: what `write` or `latents` has written; or where such a folder lies remotely (see Remote).
        cache: local folder for remote shards.
        cache_bytes: how much of them it may hold.

    Raises:
        UserError: the folder is missing, empty, without index, or a shard is missing or not as long as its index says.
    """

    OPEN_FILES = 64

    def __init__(self, folder: str | Path, cache: str | Path = CACHE, cache_bytes: int = CACHE_BYTES) -> None:
        remote = REMOTE.match(str(folder))
        self.remote = Remote(str(folder), Path(cache), cache_bytes) if remote else None
        self.folder = str(folder) if remote else Path(folder)
        again = "write it with `python -m benchmark shards`"
        if self.remote:
            path = self.remote.fetch("manifest.json")
        else:
            path = self.folder / "manifest.json"
            if not self.folder.is_dir():
                raise UserError(f"{self.folder} is not there: {again}")
            if not path.is_file():
                some = any(self.folder.glob("*.tar"))
                raise UserError(
                    f"{self.folder} {'has tars but no index (manifest.json)' if some else 'holds no shards'}: {again}"
                )
        self.manifest = read_json(path)
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise UserError(f"{self.folder}/manifest.json is not of format {FORMAT}: {again}")
        if self.remote:
            self.remote.fetch("index.npy", None, self.manifest["index"])
        self._open()
        if self.remote is None:
            self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}
        for shard in self.manifest["shards"]:
            size = sizes.get(shard["name"])
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes where its index says {shard['bytes']}"
                raise UserError(f"{self.folder}/{shard['name']} {state}: {self._remedy}")

    def _open(self) -> None:
        path = (self.remote.folder if self.remote else self.folder) / "index.npy"
        try:
            self.rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): {self._remedy}") from None
        if self.rows.dtype.names != row_type(1).names or len(self.rows) != self.manifest["count"]:
            count = self.manifest["count"]
            raise UserError(f"{path} is not the index of the {count} samples in manifest.json: {self._remedy}")
        self.counts = np.array([shard["count"] for shard in self.manifest["shards"]], np.int64)
        self.starts = np.cumsum(self.counts) - self.counts  # the first sample of each shard
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "remote": self.remote, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def _remedy(self) -> str:
        return f"run `python -m benchmark {'latents' if self.kind == 'latents' else 'shards'}` again"

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
            raise Damaged(
                f"{self.folder}/{name}: sample '{key}' is damaged or not where the index says: remove {name} and {self._remedy}"
            )
        return Sample(key, label, name, member, block[header:])

    def _descriptor(self, number: int) -> int:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        shard = self.manifest["shards"][number]
        if len(self._files) >= self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        while True:
            path = (
                self.remote.fetch(shard["name"], shard["bytes"], shard["sha256"]) if self.remote else self.folder / shard["name"]
            )
            try:
                self._files[number] = os.open(path, os.O_RDONLY)
                return self._files[number]
            except FileNotFoundError:  # of a remote shard: another process has made room meanwhile
                if not self.remote:
                    raise UserError(f"{path} has gone: {self._remedy}") from None

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


# --- Latents ---------------------------------------------------------------------------------------------------------


def latents(
    index: Index,
    out: str | Path,
    autoencoder: str,
    size_hw: tuple[int, int],
    *,
    devices: Sequence[str] = ("cpu",),
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Encodes pictures, centrally cropped to one size, as shards of latents; may be killed at any time and continues.

    A sample's member `npy` is float16 [2, 2, C, h, w]: the picture and its mirror image, each as mean and standard deviation of
    the posterior, which is sampled anew at every step of training. The manifest's `scale` and `shift` bring them to the
    model's range: (mean - shift) * scale.

    Args:
        index: shards of pictures; shard k of the latents holds the samples of its shard k.
        out: the folder.
        autoencoder: of diffusers, AutoencoderKL: a name on the Hugging Face hub or a local folder.
        size_hw: pixels (h, w).
        devices: torch devices, one process each.
        batch: pictures in a forward pass; each goes through it twice, once mirrored.
        progress: called with (samples done, samples in all).

    Raises:
        UserError: the autoencoder cannot be loaded or does not fit the size, or gives numbers that are not finite.
    """
    if index.kind != "images":
        raise UserError(f"{index.folder} holds {index.kind}; latents are made of pictures")
    config, weights = autoencoder_identity(autoencoder)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if size_hw[0] % factor or size_hw[1] % factor:
        raise UserError(f"size {size_hw[0]}x{size_hw[1]} is not a multiple of the autoencoder's {factor} pixels")
    mark = latents_fingerprint(index, weights, size_hw)
    with _claimed(Path(out), mark, 0.0, progress) as work:
        if work.done:
            return work.done
        names = [shard["name"].removesuffix(".tar") for shard in index.manifest["shards"]]
        starts, counts = index.starts.tolist(), index.counts.tolist()
        jobs = [
            _EncodeJob(str(work.out / f"{names[i]}.tar"), index, starts[i], starts[i] + counts[i], autoencoder, size_hw, batch)
            for i in work.missing(names, counts)
        ]
        work.collect(parallel(_encode_shard, jobs, len(devices), devices))
        return work.finish({
            "card": index.manifest["card"], "kind": "latents", "classes": index.classes,
            "class_names": index.manifest["class_names"], "source": "images", "ignored": 0, "images": index.fingerprint,
            "size": list(size_hw), "factor": factor, "scale": config["scaling_factor"], "shift": config["shift_factor"] or 0.0,
            "autoencoder": {"name": autoencoder, "hash": weights},
        })  # fmt: skip


def latents_fingerprint(index: Index, weights: str, size_hw: tuple[int, int]) -> str:
    """Identity of the latents of some pictures under an autoencoder of hash `weights`."""
    return digest([FORMAT, "latents", index.fingerprint, weights, list(size_hw)])


def prepare_latents(index: Index, root: str | Path, autoencoder: str, size_hw: tuple[int, int], **options: Any) -> Written:
    """`latents` into the folder under `root` that is named after the card and the fingerprint."""
    mark = latents_fingerprint(index, autoencoder_identity(autoencoder)[1], size_hw)
    return latents(index, Path(root) / f"{index.manifest['card']}-latents-{mark}", autoencoder, size_hw, **options)


@dataclass(frozen=True)
class _EncodeJob:
    tar: str
    index: Index
    start: int
    stop: int
    autoencoder: str
    size_hw: tuple[int, int]
    batch: int


def encoded(root: Path, images: str, size_hw: tuple[int, int]) -> list[Index]:
    """The folders under `root` with latents of the pictures whose fingerprint is `images`, at one size."""
    found = []
    for path in sorted(root.glob("*/manifest.json")):
        about = read_json(path)
        if about["kind"] == "latents" and about["images"] == images and tuple(about["size"]) == size_hw:
            found.append(Index(path.parent))
    return found


def autoencoder_of(card: Card) -> str:
    """Whose latents stand for a data set's pictures: a name on the Hugging Face hub, or a folder.

    The environment's AUTOENCODER takes precedence: it names where the same weights lie on a machine without network.
    """
    name = os.environ.get("AUTOENCODER") or card.autoencoder
    if not name:
        raise UserError(f"the card of {card.name} names no autoencoder; give one as AUTOENCODER=folder")
    return name


@functools.cache
def load_autoencoder(name: str, device: str) -> Any:
    """diffusers' AutoencoderKL for inference, in float32."""
    import torch
    from diffusers import AutoencoderKL

    try:
        model = AutoencoderKL.from_pretrained(name, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"autoencoder '{name}' cannot be loaded: give a folder or a name on the hub ({reason})") from None
    return model.to(device).eval().requires_grad_(False)


@functools.cache
def autoencoder_identity(name: str) -> tuple[dict[str, Any], str]:
    """(configuration, hash of configuration and weights)."""
    model = load_autoencoder(name, "cpu")
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    summary = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        summary.update(key.encode() + value.numpy().tobytes())
    return config, summary.hexdigest()[:12]


def _encode_shard(job: _EncodeJob) -> tuple[int, list[list[str]]]:
    """Writes the latents of one shard; returns its samples and no failures."""
    import torch

    device = _DEVICE[0]
    model = load_autoencoder(job.autoencoder, device)

    def pictures() -> Iterator[tuple[Sample, np.ndarray]]:
        """Samples with their crops, uint8 [h, w, 3], decoded ahead in threads while the device works."""
        with ThreadPoolExecutor(4) as pool:
            waiting: deque[tuple[Sample, Any]] = deque()
            for number in range(job.start, job.stop):
                sample = job.index[number]
                waiting.append((sample, pool.submit(crop, sample)))
                if len(waiting) > 4 * job.batch:
                    sample, result = waiting.popleft()
                    yield sample, result.result()
            for sample, result in waiting:
                yield sample, result.result()

    def crop(sample: Sample) -> np.ndarray:
        return np.asarray(center_crop(decoded(sample.data, sample.member), job.size_hw))

    def samples() -> Iterator[tuple[str, int, str, bytes]]:
        queue = pictures()
        while part := list(itertools.islice(queue, job.batch)):
            images = torch.from_numpy(np.stack([image for _, image in part])).to(device).permute(0, 3, 1, 2)
            images = images.float().div_(127.5).sub_(1)
            with torch.inference_mode():
                posterior = model.encode(torch.cat([images, images.flip(-1)])).latent_dist
                pairs = torch.stack([posterior.mean, posterior.std], dim=1).half().cpu()  # [2 B, 2, C, h, w]
            if not pairs.isfinite().all():
                raise UserError(f"the autoencoder '{job.autoencoder}' gives latents that do not fit float16")
            for (sample, _), value in zip(part, torch.stack(pairs.chunk(2), dim=1).numpy(), strict=True):
                stream = io.BytesIO()
                np.save(stream, value)
                yield sample.key, sample.label, "npy", stream.getvalue()

    write_tar(Path(job.tar), samples(), [])
    return job.stop - job.start, []
