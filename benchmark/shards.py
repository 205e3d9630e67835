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
                raise UserError(f"the source of '{card.name}' has {found} {what}, its card says {said}: a subset needs a card of its own")
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
        with atomic(self.out / "index.npy") as draft, open(draft, "wb") as file:
            np.save(file, index)
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
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however the process ends
        except BlockingIOError:
            raise UserError(f"another process is writing {out}: wait for it") from None
        path = out / "source.json"
        if path.is_file():
            other = read_json(path).get("fingerprint")
            if other != mark:
                raise UserError(f"{out} holds the shards of another source ({other}, not {mark}): choose another folder")
        elif any(out.glob("*.tar")):
            raise UserError(f"{out} holds tars that were not written here: choose another folder")
        try:
            write_json(path, {"fingerprint": mark, "format": FORMAT})
            for draft in out.glob(".*.part"):
                shutil.rmtree(draft)
            yield _Work(out, mark, *options)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"no space left for {out}: free some and run it again, it continues") from None
            raise


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
    if not tar.is_file() or not _index_path(tar).is_file():
        return None
    entry = read_json(_index_path(tar))
    return entry if entry["bytes"] == tar.stat().st_size else None


def row_type(key_bytes: int) -> np.dtype:
    """One sample in index.npy: where the bytes of its picture lie in its shard."""
    return np.dtype([("key", f"S{key_bytes}"), ("label", "<i4"), ("member", "S8"), ("offset", "<i8"), ("bytes", "<i8")])


def _whole(out: Path) -> dict[str, Any] | None:
    """The manifest, if all that it lists is there in full."""
    if not (out / "manifest.json").is_file() or not (out / "index.npy").is_file():
        return None
    manifest = read_json(out / "manifest.json")
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(out)}
    return manifest if all(sizes.get(shard["name"]) == shard["bytes"] for shard in manifest["shards"]) else None


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
