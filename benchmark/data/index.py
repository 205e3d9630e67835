"""A folder of shards as a sequence of samples, each one read at a known offset."""

from __future__ import annotations

import contextlib
import functools
import os
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from annotated_types import Interval, Len
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from benchmark.data.card import CLASSES
from benchmark.data.remote import CACHE_BYTES, REMOTE, Remote, cache_folder
from benchmark.files import NAME, UserError, read_json
from benchmark.inputs import STRICT, matching, reason

OPEN = {**STRICT, "extra": "ignore"}
Hash = Annotated[str, matching(r"[0-9a-f]{8,64}", "8 to 64 hexadecimal digits")]
FORMAT = 1  # of the folder and of what is written for a source; raise it when either changes


def row_type(key_bytes: int) -> np.dtype:
    """One sample in index.npy: where the bytes of its picture lie in its shard."""
    return np.dtype([("key", f"S{key_bytes}"), ("label", "<i4"), ("member", "S8"), ("offset", "<i8"), ("bytes", "<i8")])


@pydantic.with_config(OPEN)
class _Shard(TypedDict):
    name: Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.tar", "a file name that ends in .tar")]
    count: Annotated[int, Interval(ge=0, le=10**9)]
    bytes: Annotated[int, Interval(ge=0, le=2**62)]
    sha256: Hash


@pydantic.with_config(OPEN)
class _Manifest(TypedDict):
    """What is read of a manifest; what else it says is for people."""

    format: int
    kind: Literal["images", "latents"]
    card: Annotated[str, matching(NAME.pattern, "a name of [a-z0-9_-]+")]
    classes: Annotated[int, Interval(ge=1, le=CLASSES)]
    class_names: list[str] | None
    count: Annotated[int, Interval(ge=1, le=2**40)]
    samples: int
    failures: list[Any]
    fingerprint: Hash
    index: Hash
    shards: list[_Shard]


@pydantic.with_config(OPEN)
class _Latents(_Manifest):
    images: Hash
    size: Annotated[list[Annotated[int, Interval(ge=1, le=2**16)]], Len(2, 2)]
    scale: Annotated[float, Interval(gt=0, le=1e6)]
    shift: Annotated[float, Interval(ge=-1e6, le=1e6)]
    autoencoder: dict[str, str]


@functools.cache
def _models() -> tuple[pydantic.TypeAdapter, pydantic.TypeAdapter]:
    return pydantic.TypeAdapter(_Manifest), pydantic.TypeAdapter(_Latents)


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a folder of shards; a UserError says what in it is not as `write` would have written it."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}: the shards are of another version; write them anew")
    try:
        _models()[value.get("kind") == "latents"].validate_python(value)
    except pydantic.ValidationError as error:
        raise UserError(f"{path} was edited: {reason(error, whole='the manifest')}") from None
    return value


def is_shards(folder: Path | str) -> bool:
    """Whether a folder holds shards. Its manifest.json alone does not say so: other data sets have one, too."""
    path = Path(folder) / "manifest.json"
    if not os.path.isfile(path):
        return False
    if os.path.isfile(path.parent / "index.npy"):
        return True
    try:
        value = read_json(path)
    except UserError:
        return False
    return isinstance(value, dict) and {"format", "kind", "fingerprint"} <= value.keys()


def manifests(root: Path) -> dict[Path | str, dict[str, Any]]:
    """{folder: manifest} of the complete shards below `root`; a broken manifest is passed over, as if it were not there."""
    found: dict[Path | str, dict[str, Any]] = {}
    for path in sorted(root.glob("*/manifest.json")):
        with contextlib.suppress(UserError):
            found[path.parent] = read_manifest(path)
    return found


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


def manifest_path(folder: Path | str) -> Path:
    """The manifest of a folder of shards, or a copy of a remote one's."""
    if REMOTE.match(str(folder)):
        return Remote(str(folder), cache_folder(), CACHE_BYTES).fetch("manifest.json")
    return Path(folder) / "manifest.json"


def folder_name(folder: Path | str, manifest: dict[str, Any] | None) -> str:
    """How references call a folder of shards: a remote one as its copy would be called."""
    return f"{manifest['card']}-{manifest['fingerprint']}" if manifest and isinstance(folder, str) else Path(folder).name


class Index:
    """A folder of shards as a sequence of samples, numbered in the order of its shards.

    It pickles without its table, and opens files when a process first reads from them.

    Args:
        folder: what `write` or `latents` has written; or where such a folder lies remotely (see Remote).
        cache: local folder for remote shards; default: `cache_folder`.
        cache_bytes: how much of them it may hold.

    Raises:
        UserError: the folder is missing, empty, without index, or a shard is missing or not as long as its index says.
    """

    OPEN_FILES = 64

    def __init__(self, folder: str | Path, cache: str | Path = "", cache_bytes: int = CACHE_BYTES) -> None:
        remote = REMOTE.match(str(folder))
        self.remote = Remote(str(folder), Path(cache or cache_folder()), cache_bytes) if remote else None
        self.folder = str(folder) if remote else Path(folder)
        again = "write it with `python -m benchmark shards`"
        path = self.remote.fetch("manifest.json") if self.remote else self.folder / "manifest.json"
        if not remote and not os.path.isdir(self.folder):
            state = "is not a folder" if os.path.exists(self.folder) else "does not exist"
            raise UserError(f"{self.folder} {state}: {again}")
        if not remote and not path.is_file():
            state = "has tars but no index (manifest.json)" if any(self.folder.glob("*.tar")) else "holds no shards"
            raise UserError(f"{self.folder} {state}: {again}")
        try:
            self.manifest = read_manifest(path)
        except UserError as error:
            raise UserError(f"{error}: {again}") from None
        if self.remote:
            self.remote.fetch("index.npy", None, self.manifest["index"])
        self._open()
        labels = self.rows["label"]
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise UserError(
                f"{path.parent}/index.npy holds labels {labels.min()} to {labels.max()}, of {self.classes} classes: {again}"
            )
        if self.remote is None:
            self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}
        for shard in self.manifest["shards"]:
            size = sizes.get(shard["name"])
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes, but its index says {shard['bytes']}"
                raise UserError(f"{self.folder}/{shard['name']} {state}: {self._remedy}")

    def _open(self) -> None:
        path = (self.remote.folder if self.remote else self.folder) / "index.npy"
        try:
            self.rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): {self._remedy}") from None
        self.counts = np.array([shard["count"] for shard in self.manifest["shards"]], np.int64)
        count, found = self.manifest["count"], self.rows.dtype
        same = found.names == row_type(1).names and found == row_type(found["key"].itemsize)
        if not same or self.rows.shape != (count,) or self.counts.sum() != count:
            raise UserError(f"{path} is not the index of the {count} samples in manifest.json: {self._remedy}")
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
        key = self.rows["key"][number].decode("utf-8", "surrogateescape")
        return shard, self.manifest["shards"][shard]["name"], key

    def __getitem__(self, number: int) -> Sample:
        """One sample.

        Raises:
            UserError: the shard does not hold it where the index says; names shard and key.
        """
        shard, name, key = self.where(number)
        _, label, member, offset, size = self.rows[number].item()
        member = member.decode()
        header = tarfile.BLOCKSIZE
        inside = size >= 0 and header <= offset <= self.manifest["shards"][shard]["bytes"] - size
        block = self._read(shard, header + size, offset - header) if inside else b""
        if not _is_member(block[:header], f"{key}.{member}", size) or len(block) != header + size:
            raise Damaged(f"{self.folder}/{name}: sample '{key}' is damaged or not where the index says: {self._repair(shard)}")
        return Sample(key, label, name, member, block[header:])

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        """Bytes of a shard; opened again, once, where a network's file system has lost it."""
        for attempt in range(2):
            try:
                return os.pread(self._descriptor(shard), size, offset)
            except OSError as error:
                if shard in self._files:
                    os.close(self._files.pop(shard))
                if attempt:
                    name = self.manifest["shards"][shard]["name"]
                    raise UserError(
                        f"{self.folder}/{name} cannot be read ({error.strerror}); run the same command again to continue"
                    ) from None
        raise AssertionError

    def _repair(self, number: int) -> str:
        """What to do about a damaged shard: of a remote one, it is the copy."""
        shard = self.manifest["shards"][number]
        if self.remote:
            return f"remove its copy, {self.remote.path(shard['name'], shard['sha256'])}, and run the same command again"
        images = ", with the original images as DATA" if self.manifest.get("source") != "shapes" else ""
        return f"move {shard['name']} away and {self._remedy}{images}"

    def _descriptor(self, number: int) -> int:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        shard = self.manifest["shards"][number]
        if len(self._files) >= self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        while True:
            if self.remote:
                path = self.remote.fetch(shard["name"], shard["bytes"], shard["sha256"])
            else:
                path = self.folder / shard["name"]
            try:
                self._files[number] = os.open(path, os.O_RDONLY)
                return self._files[number]
            except FileNotFoundError:  # of a remote shard: another process has made room meanwhile
                if not self.remote:
                    raise UserError(f"{path} no longer exists: {self._remedy}") from None

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
