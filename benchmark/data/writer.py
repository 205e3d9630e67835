"""Writing shards: source -> train-000000.tar, train-000000.idx.json, ... -> index.npy, manifest.json once all shards are there.

What is written depends on the source alone: never on the number of workers, on interruptions or on the clock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.card import CLASSES, Card
from benchmark.data.choice import CHOSEN, PER_SHARD, Choice, LeftOut
from benchmark.data.images import DAMAGE
from benchmark.data.index import FORMAT, read_manifest, row_type
from benchmark.data.pool import parallel
from benchmark.data.sources import Item, Source, source
from benchmark.data.tars import index_path, member_name, write_tar
from benchmark.files import (
    UserError,
    below,
    digest,
    file_hash,
    is_full,
    locked,
    read_json,
    shown,
    sweep,
    write_array,
    write_json,
)

TOLERANCE = 1e-3  # the share of unreadable files at which a data set is taken for damaged


# --- Writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What `write` has done, or found done."""

    folder: Path
    fingerprint: str
    count: int
    skipped: bool  # it was complete already
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> pictures that are not taken, each in the manifest
    others: dict[str, int] = field(default_factory=dict)  # reason -> pictures or files that are not taken, only counted

    def __str__(self) -> str:
        state = "already complete, skipped" if self.skipped else "written"
        lost, others = told(self.left_out), told(self.others)
        lost = "; ".join([f"{lost} (listed in manifest.json)"] * bool(lost) + [others] * bool(others))
        return f"{self.folder}: {self.count:,} images {state}{f', left out: {lost}' if lost else ''}"


SOURCE = "source.json"  # in a folder of shards, from the start: what they are made from


def made_from(folder: Path) -> str:
    """Where the source of a folder's shards lay; "" where it was rendered, or that was not noted."""
    about = read_json(folder / SOURCE) if (folder / SOURCE).is_file() else {}
    return str(about.get("where", "")) if isinstance(about, dict) else ""


def told(counts: dict[str, int]) -> str:
    """Reasons with their numbers, in one line, but for those without any."""
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items() if number)


@dataclass(frozen=True)
class _Job:
    out: str
    name: str
    part: Iterable[Item]
    classes: int
    choice: Choice


def fingerprint(card: Card, source: Source, per_shard: int = PER_SHARD) -> str:
    """Identity of the shards that `write` makes of a source."""
    return digest([FORMAT, card.name, source.kind, per_shard, source.identity(), *Choice.of(card).identity()])


def prepare(card: Card, path: str | Path | Source | None, root: str | Path, **options: Any) -> Written:
    """`write` into the folder under `root` that is named after the card and the fingerprint."""
    found = path if isinstance(path, Source) else source(card, path)
    return write(card, found, folder_of(card, found, Path(root), options.get("per_shard", PER_SHARD)), **options)


def folder_of(card: Card, source: Source, root: Path, per_shard: int = PER_SHARD) -> Path:
    """Where the shards of a source lie below a folder of data sets."""
    return below(root, f"{card.name}-{fingerprint(card, source, per_shard)}")


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
    if card.kind == "own":
        tolerance = math.inf  # users' own images: use what is readable, and report what was skipped
    choice = Choice.of(card)
    with claimed(Path(out), fingerprint(card, source, per_shard), tolerance, progress, choice, where=source.where) as work:
        if work.done:
            return work.done
        source.ready(workers)
        total = len(source)
        if not total:
            raise work.empty([list(entry) for entry in source.left_out])
        classes = source.classes if isinstance(source.classes, int) else len(source.classes)
        for found, said, what in ((total, card.count, "images"), (classes, card.class_count, "classes")):
            if found and said and found != said:
                raise UserError(
                    f"'{card.name}': the source has {found} {what}, the card says {said}; a subset needs its own card"
                )
        classes = classes or card.class_count
        names = [f"train-{number:06d}" for number in range(-(-total // per_shard))]
        bounds = [(start, min(start + per_shard, total)) for start in range(0, total, per_shard)]
        missing = work.missing(names, [stop - start for start, stop in bounds])
        jobs = [_Job(str(work.out), names[i], source.part(*bounds[i]), classes, choice) for i in missing]
        work.collect(parallel(_write_shard, jobs, workers))
        return work.finish({
            "card": card.name, "kind": "images", "classes": classes,
            "class_names": None if isinstance(source.classes, int) else list(source.classes),
            "source": source.kind, "ignored": source.ignored, "dropped": source.dropped,
        }, source.left_out)  # fmt: skip


class _Work:
    """A folder being written: which shards are there, how many samples, how many of them unreadable.

    `choice` and `where` are those of the source, for what is said of it; `manifest` is that of a folder that is complete.
    """

    def __init__(
        self,
        out: Path,
        key: str,
        tolerance: float,
        progress: Callable[[int, int], None] | None,
        choice: Choice = Choice(),  # noqa: B008 (frozen)
        where: str = "",
        manifest: dict[str, Any] | None = None,
    ) -> None:
        self.out, self.key, self.tolerance, self.progress = out, key, tolerance, progress
        self.choice, self.where = choice, where
        self.failures: list[list[str]] = []
        self.names: list[str] = []
        self.count = self.total = 0
        self.done: Written | None = None
        if manifest is not None:
            self.failures, self.total = manifest["failures"], manifest["samples"]
            self._tolerate()
            self.done = self._written(manifest, skipped=True)

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

    def finish(self, about: dict[str, Any], left_out: Iterable[tuple[str, str]] = ()) -> Written:
        """Joins the shards' indexes into one that loads at once, and writes the manifest, which makes the folder complete."""
        rows, shards, failures = [], [], []
        for name in self.names:
            entry = _entry(self.out, name)
            assert entry is not None
            rows += [tuple(sample) for sample in entry["samples"]]
            failures += entry["failures"]
            about_shard = {key: entry[key] for key in ("bytes", "sha256")}
            shards.append({"name": f"{name}.tar", "count": len(entry["samples"]), **about_shard})
        if (given := len(rows) + len(failures)) != self.total:
            raise UserError(
                f"{self.where or self.out} held {self.total:,} images when they were counted and gave {given:,}: it changed "
                f"while it was read, or a shard is of older code; remove {self.out} and run the command again"
            )
        failures = [*map(list, left_out), *failures]
        if not rows:
            raise self.empty(failures)
        keys = [row[0].encode("utf-8", "surrogateescape") for row in rows]
        index = np.empty(len(rows), row_type(max(map(len, keys))))
        index["key"] = keys
        for number, column in enumerate(("label", "member", "offset", "bytes"), start=1):
            index[column] = [row[number] for row in rows]
        write_array(self.out / "index.npy", index)
        counts = np.bincount(index["label"], minlength=about["classes"])
        manifest = {
            **about, "format": FORMAT, "fingerprint": self.key, "count": len(rows), "samples": self.total,
            "shards": shards, "failures": failures, "content": digest([shard["sha256"] for shard in shards]),
            "classes": len(counts), "class_counts": counts.tolist(), "index": file_hash(self.out / "index.npy"),
        }  # fmt: skip
        write_json(self.out / "manifest.json", manifest)
        return self._written(manifest, skipped=False)

    def empty(self, failures: list[list[str]]) -> UserError:
        """What to raise where no picture is left."""
        if not failures:
            return UserError(f"{self.where or self.out} holds no images")
        counts = told(self.choice.counts(trouble for _, trouble in failures))
        return UserError(f"none of the {len(failures):,} images in {self.where or self.out} can be used: {counts}")

    def _written(self, manifest: dict[str, Any], skipped: bool) -> Written:
        """What a manifest says in few numbers."""
        left_out = self.choice.counts(trouble for _, trouble in manifest["failures"])
        others = {"of other classes": manifest.get("dropped", 0), "of other file types": manifest.get("ignored", 0)}
        return Written(self.out, self.key, manifest["count"], skipped, left_out, others)

    def _tell(self) -> None:
        self._tolerate()
        if self.progress:
            self.progress(self.count, self.total)

    def _tolerate(self) -> None:
        unreadable = [(name, trouble) for name, trouble in self.failures if not trouble.startswith(CHOSEN)]
        if len(unreadable) > self.tolerance * self.total:
            name, trouble = unreadable[0]
            raise UserError(
                f"{len(unreadable)} of {self.total} images are unreadable so far, more than {self.tolerance:.2%}; "
                f"the first: {name} ({trouble})"
            )


@contextlib.contextmanager
def claimed(out: Path, key: str, *options: Any, where: str = "") -> Iterator[_Work]:
    """Makes `out` ours for a while: against a second writer, another source, leftovers of a killed run, and full disks.

    `where` the source lies is noted: names and sizes of its files are its identity, and another's may be the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    if _belongs(out, key) and (manifest := _complete(out)):
        yield _Work(out, key, *options, where=where, manifest=manifest)  # nothing to write, so any number of processes may read
        return
    with locked(out / ".lock", lambda: logging.getLogger(__name__).warning("waiting for another process that writes %s", out)):
        try:
            if not _belongs(out, key):
                write_json(
                    out / SOURCE, {"fingerprint": key, "format": FORMAT, "where": os.path.realpath(where) if where else ""}
                )
            sweep(out)  # of a killed process
            yield _Work(out, key, *options, where=where, manifest=_complete(out))  # another process may have written it meanwhile
        except OSError as error:
            if is_full(error):
                raise UserError(f"no space left for {out}: free some and run the same command to continue") from None
            raise
        finally:
            sweep(out)


def _belongs(out: Path, key: str) -> bool:
    """Whether the folder belongs to this source; False if to none, and a UserError if to another one."""
    if (out / SOURCE).is_file():
        about = read_json(out / SOURCE)
        other = about.get("fingerprint") if isinstance(about, dict) else about
        if other != key:
            raise UserError(f"{out} holds the shards of another source ({shown(other)}, not {key}): choose another folder")
        return True
    if any(out.glob("*.tar")):
        raise UserError(f"{out} holds tars from elsewhere: choose another folder")
    return False


def _write_shard(job: _Job) -> tuple[int, list[list[str]]]:
    """Writes one shard of a source; returns its samples and failures."""
    failures: list[list[str]] = []
    count = 0

    def samples() -> Iterator[tuple[str, int, str, bytes]]:
        nonlocal count
        for item in job.part:
            count += 1
            if not 0 <= item.label < (job.classes or CLASSES):
                raise UserError(f"{item.name}: label {shown(item.label)} is not one of {job.classes or CLASSES} classes")
            extension, trouble = item.extension, item.trouble
            if item.data is not None and not extension:
                try:
                    extension = member_name(item.data, job.choice)
                except DAMAGE as error:
                    trouble = (str(error) if isinstance(error, LeftOut) else f"{type(error).__name__}: {error}").splitlines()[0]
            if extension:
                yield item.key, item.label, extension, item.data
            else:
                failures.append([item.name, trouble])

    write_tar(Path(job.out) / f"{job.name}.tar", samples(), failures)
    return count, failures


def _entry(out: Path, name: str) -> dict[str, Any] | None:
    """The index of a shard that is complete, else None."""
    tar = out / f"{name}.tar"
    if not tar.is_file():
        return None
    try:
        entry = read_json(index_path(tar))
    except UserError:  # not there or damaged: written anew
        return None
    whole = isinstance(entry, dict) and {"bytes", "sha256", "samples", "failures"} <= entry.keys()
    return entry if whole and entry["bytes"] == tar.stat().st_size else None


def _complete(out: Path) -> dict[str, Any] | None:
    """The manifest, if all that it lists is there in full."""
    index = out / "index.npy"
    try:
        manifest = read_manifest(out / "manifest.json")
    except UserError:  # not there yet; or edited by hand: made anew
        return None
    if not index.is_file() or file_hash(index) != manifest["index"]:
        return None
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(out)}
    return manifest if all(sizes.get(shard["name"]) == shard["bytes"] for shard in manifest["shards"]) else None
