"""Shards as files: webdataset tars with two members per sample, the original image file and `cls`, its label as text; each with
an index of where its samples lie.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.data.choice import Choice
from benchmark.data.images import MEMBERS, decoded, identified
from benchmark.files import UserError, atomic, digest, file_hash, listed, shown, write_json

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # Pillow's name of a format -> member; otherwise in lower case


# --- Tars ------------------------------------------------------------------------------------------------------------

LABEL_BYTES = 1 << 20  # of a sample's `cls` or `json` at most


def members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where everything in a webdataset tar lies: key -> member -> (offset, bytes), in the order of the tar.

    Raises:
        UserError: the file is no tar, is compressed, or ends early.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch

    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.name.startswith("/") or ".." in info.name.split("/"):
                    raise UserError(f"{path} holds {shown(info.name)}, which points outside the tar's folder")
                if not (info.isreg() or info.isdir()):
                    kind = "link" if info.islnk() or info.issym() else "device, pipe or the like"
                    raise UserError(f"{path} holds {shown(info.name)}, a {kind}; members must be files")
                key, member = base_plus_ext(info.name)
                if info.isreg() and key is not None:
                    found.setdefault(key, {})[member.lower()] = (info.offset_data, info.size)
            end = tar.offset
    except (tarfile.TarError, ValueError, OSError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a complete, uncompressed tar ({error})") from None
    # Without its end mark of zeros, a tar that was cut between two members would seem complete.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{path} ends early: the end mark of a tar is missing")
    return found


def member_name(data: bytes, choice: Choice) -> str:
    """The member name that fits what `data` really is; raises one of DAMAGE unless every pixel can be read and is taken."""
    with identified(), Image.open(io.BytesIO(data)) as image:
        choice.check(image)
        name = FORMATS.get(image.format, image.format.lower())
    if name not in MEMBERS:
        raise ValueError(f"format {name} is not supported")
    decoded(data, name)
    return name


def write_tar(path: Path, samples: Iterable[tuple[str, int, str, bytes]], failures: list[list[str]]) -> None:
    """Writes a tar of (key, label, member, data) and, last, its index: a shard counts as written when that is there.

    Args:
        failures: (name, reason) of what is not in it; may grow while `samples` is consumed.
    """
    labels = {}

    def contents() -> Iterator[dict[str, Any]]:
        for key, label, member, data in samples:
            if key in labels:
                raise UserError(
                    f"{path.parent}: two images of one shard have the key '{key}'; remove the folder and run the command again"
                )
            labels[key] = label
            yield {"__key__": key, "cls": str(label).encode(), member: data}

    write_contents(path, contents())
    write_json(index_path(path), {**_summary(path, labels), "failures": failures})


def write_contents(path: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Writes webdataset's samples, `__key__` and bytes by member, as a tar without the time of day.

    webdataset does not hand its own `format` on, and Python's default would move a name that is not ASCII into a header of its
    own, where an index does not look.
    """
    from webdataset.writer import TarWriter  # imports torch

    with atomic(path) as draft, open(draft, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        tar.tarstream.format = tarfile.USTAR_FORMAT
        for item in samples:
            tar.write(item)


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".idx.json")


def _summary(tar: Path, labels: dict[str, int]) -> dict[str, Any]:
    """What a shard's index says of it. The tar is read back, so the places are those that other readers find."""
    samples = []
    for key, parts in members(tar).items():
        (member,) = parts.keys() - {"cls"}
        samples.append([key, labels[key], member, *parts[member]])
    assert len(samples) == len(labels)
    return {"bytes": tar.stat().st_size, "sha256": file_hash(tar), "samples": samples}


def unique_keys(names: list[str]) -> list[str]:
    """webdataset keys: `names` without dots, where a key would end, short enough for a tar header, and none twice."""
    last: dict[str, int] = {}  # how often a name was there
    keys = []
    for name in names:
        base = name.replace(".", "_").strip("/")
        if len(base.encode("utf-8", "surrogateescape")) > 90:  # ustar's name field holds 100 bytes, ending included
            start = base[:20].encode("utf-8", "surrogateescape")[:60].decode("utf-8", "ignore")
            base = f"{start}-{digest(name, 20)}"
        number = last.get(base, 0) + 1
        key = base if number == 1 else f"{base}~{number}"
        while key in last:  # a name may itself end like that
            number += 1
            key = f"{base}~{number}"
        last[base] = number
        last.setdefault(key, 1)
        keys.append(key)
    return keys


def labelled(job: tuple[int, Path]) -> tuple[int, list[tuple[str, int | None, str, int, int]]]:
    """The samples of one tar: (key, label or None, member, offset, bytes). Carries the tar's number through the pool."""
    number, path = job
    samples = []
    with open(path, "rb") as file:

        def text(place: tuple[int, int]) -> bytes:
            if place[1] > LABEL_BYTES:
                raise ValueError("too long")
            file.seek(place[0])
            return file.read(place[1])

        for key, parts in members(path).items():
            images = [member for member in parts if member.rpartition(".")[2] in MEMBERS]
            if len(images) != 1:
                raise UserError(f"{path}: sample '{key}' has {len(images)} images (members: {listed(parts)})")
            label: Any = None
            try:
                if "cls" in parts:
                    label = int(text(parts["cls"]))
                elif "json" in parts:
                    label = json.loads(text(parts["json"])).get("label")
            except (ValueError, AttributeError, RecursionError):
                pass
            label = label if isinstance(label, int) and not isinstance(label, bool) else None
            samples.append((key, label, images[0], *parts[images[0]]))
    return number, samples
