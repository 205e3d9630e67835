"""The subset of a source that a card selects: split, classes and their labels, sizes, and whether to keep greyscale images."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np
from PIL import Image

from benchmark.data.card import Card
from benchmark.data.images import IMAGE_SUFFIXES
from benchmark.files import UserError, listed, shown, walk

# How the parts of a data set begin in the names of their folders and files.
SPLITS = {"train": ("train",), "val": ("val", "dev"), "test": ("test",)}
WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}  # elsewhere in them
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's list of file names and classes, beside val/images
LABELS = ("label", "labels", "cls", "class")  # columns of parquet files
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits, which it would cut off at 255
GREY = ("1", "L", "LA", "La", *DEEP)  # Pillow's modes without colour
# How the reasons for leaving out a sound picture begin.
TOO_SMALL, NO_COLOUR, TOO_DEEP, BESIDE = "too small", "grey", "more than 8 bits a channel", "beside the class folders"
CHOSEN = (TOO_SMALL, NO_COLOUR, TOO_DEEP, BESIDE)  # reasons to leave out a picture that can be read
UNREADABLE = "unreadable"


class LeftOut(ValueError):
    """A picture that is sound, but not taken."""


@dataclass(frozen=True)
class Choice:
    """The part of a card that chooses among the pictures of a source.

    Attributes:
        names: the classes that are taken of a larger set, in the order of their labels; None takes all that there are.
        whole: how many classes that larger set has, where the named ones are its first; 0 where that is not known.
        own: whether classes are whatever lies there.
        smallest: pixels of the shorter side; 0 takes any size.
        grey: whether pictures without colour are taken.
    """

    names: tuple[str, ...] | None = None
    whole: int = 0
    own: bool = False
    smallest: int = 0
    grey: bool = True

    @staticmethod
    def of(card: Card) -> Choice:
        names = card.classes if card.others == "dropped" and isinstance(card.classes, tuple) else None
        return Choice(names, card.labels, card.kind == "own", card.smallest, card.grey == "kept")

    def identity(self) -> list[Any]:
        """What a fingerprint has to know; empty for cards that take everything."""
        return [] if self == Choice() else [self.names, self.whole, self.own, self.smallest, self.grey]

    @property
    def relabels(self) -> bool:
        """Whether labels of a source are not those of its shards."""
        return self.own or self.names is not None

    def labels(self, found: Counter, names: Sequence[str] | None, where: str) -> tuple[dict[Any, int], tuple[str, ...]]:
        """(label of the source -> label of the shards, names of the classes); labels without an entry are dropped.

        Args:
            found: how many pictures each label of the source has: class names, numbers, or None for pictures without label.
            names: what the numbers mean, where the source says so.
            where: the source, for messages.
        """
        if self.names is None:
            if None in found and len(found) > 1:
                raise UserError(f"{where}: {found[None]} of {found.total()} images have no label; all must have one, or none")
            if len({type(label) for label in found}) > 1:
                raise UserError(f"{where}: some labels are numbers and some are names; all must be one or the other")
            kept, named = sorted(found), dict(enumerate(names or ()))
            return {label: i for i, label in enumerate(kept)}, tuple(
                "pictures" if label is None else named.get(label, str(label)) for label in kept
            )
        numbers = [label for label in found if isinstance(label, int)]
        if not numbers:
            table = {name: i for i, name in enumerate(self.names)}
        elif names:
            table = {names.index(name): i for i, name in enumerate(self.names) if name in names}
        elif max(numbers) + 1 in (len(self.names), self.whole):
            table = {i: i for i in range(len(self.names))}
        else:
            raise UserError(
                f"{where}: numeric labels up to {max(numbers)} are ambiguous: with {len(self.names)} or {self.whole} classes "
                "they would match the card"
            )
        there = {label for given, label in table.items() if given in found}
        if missing := [name for label, name in enumerate(self.names) if label not in there]:
            raise UserError(f"{where}: has no image of {len(missing)} of the card's classes, such as {missing[0]}")
        return table, self.names

    def check(self, image: Image.Image) -> None:
        """Raises LeftOut where an opened picture is too small, without colour or of more than 8 bits; its pixels are not read."""
        if min(image.size) < self.smallest:
            raise LeftOut(f"{TOO_SMALL}: {image.height} x {image.width} pixels")
        if not self.grey and image.mode in GREY:
            raise LeftOut(f"{NO_COLOUR}: mode {image.mode}")
        if image.mode in DEEP:
            raise LeftOut(f"{TOO_DEEP}: mode {image.mode}")

    def told(self, reason: str) -> str:
        """The beginning of a reason as it stands behind a number of pictures: "5 with a side below 64 pixels"."""
        return {TOO_SMALL: f"with a side below {self.smallest} pixels", TOO_DEEP: f"with {TOO_DEEP}"}.get(reason, reason)

    def counts(self, reasons: Iterable[str]) -> dict[str, int]:
        """How many pictures are not taken, by the reasons as they are told; those that could not be read are the first."""
        begun = Counter(next((reason for reason in CHOSEN if why.startswith(reason)), "") for why in reasons)
        told = {self.told(reason): begun[reason] for reason in CHOSEN}
        return {UNREADABLE: begun[""], **told}


def split_files(paths: list[Path], split: str) -> list[Path]:
    """Those files of a folder that are of the split; all of them where no name tells."""
    named = {path: part for path in paths if (part := split_of(path.name))}
    if len(named) < len(paths):  # a word amid some names is no division of them all
        named = {path: part for path in paths for part, starts in SPLITS.items() if path.name.startswith(starts)}
    if len(set(named.values())) < 2 and split == "train":
        return paths
    return [path for path in paths if named.get(path) == split]


def split_of(name: str) -> str:
    """The split that a file's name begins with or holds as a word, as in "imagenet1k-validation-00.tar"; "" for none."""
    for part, starts in SPLITS.items():
        if name.startswith(starts):
            return part
    words = re.split(r"[^a-z]+", name.lower())
    return next((part for word in words for part, whole in WORDS.items() if word in whole), "")


def subfolders(root: Path) -> list[str]:
    """The names of the folders in a folder, but for hidden ones."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def split_folder(root: Path, split: str, flat: bool = False) -> Path:
    """The folder of the split below a root that holds nothing but splits; else the root itself.

    `flat`: whether splits may hold images without class folders. Then all must be called what splits are called, and be two or
    more: other names that begin so, or one alone, are classes.
    """
    folders = subfolders(root)
    starts = tuple(start for parts in SPLITS.values() for start in parts)
    chosen = [name for name in folders if name.startswith(SPLITS[split])]
    if not chosen or not all(name.startswith(starts) for name in folders):
        return root
    below = root / chosen[0]
    parts = [next((part for part, words in WORDS.items() if name.lower() in words), "") for name in folders]
    if flat and all(parts) and len(set(parts)) > 1 and parts.count(split) == 1:
        return root / folders[parts.index(split)]
    return below if (below / ANNOTATIONS).is_file() or any(entry.is_dir() for entry in os.scandir(below)) else root


def check_one_form(root: Path, packed: Sequence[Path]) -> None:
    """Refuses a folder that holds tars or parquet files and folders of images: which of them are meant cannot be told."""
    for folder in subfolders(root):
        if any(name.lower().endswith(IMAGE_SUFFIXES) for _, names in walk(root / folder) for name in names):
            raise UserError(
                f"DATA {root} holds {listed(path.name for path in packed)} and a folder of images, {folder}: move one of the two "
                "elsewhere, or give the path of such a file itself"
            )


def annotated(root: Path) -> dict[str, str]:
    """File below the folder -> class, of Tiny-ImageNet's list; empty where there is none."""
    path = root / ANNOTATIONS
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {f"images/{row[0]}": row[1] for row in csv.reader(file, delimiter="\t") if len(row) > 1}


def class_names(schema: Any, target: str) -> list[str] | None:
    """What the numbers of a label column mean, as Hugging Face's `datasets` keeps it in a file's metadata."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return about["info"]["features"][target]["names"]
    except (ValueError, KeyError, TypeError):
        return None


def columns_of(path: Path, schema: Any, choice: Choice) -> tuple[str, str]:
    """The names of the picture's and the label's column; "" for pictures of one's own that have no label."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    images = [field.name for field in schema if holds_bytes(field.type)]
    labels = [name for name in LABELS if name in schema.names]
    if choice.names is not None:  # names tell more than numbers
        labels = [name for name in ("wnid", "synset") if name in schema.names] + labels
    if choice.own and len(images) == 1:
        labels = labels or [""]
    if len(images) != 1 or not labels:
        raise UserError(f"{path}: needs one column of image bytes and one called label; it has {listed(schema.names)}")
    return images[0], labels[0]


PER_SHARD = 1000  # samples; about 110 MB of ImageNet's JPEGs
GROUP = 8  # shards whose samples a reader mixes: large enough for many classes, small enough to be cached when remote
MIXED = GROUP * PER_SHARD


def check_order(labels: np.ndarray, where: str) -> None:
    """Raises UserError where rows are so sorted by class that batches would hold few classes.

    Counted are the classes of as many rows as a reader mixes.

    Args:
        labels: [N], any that tell classes apart, in the order in which rows are dealt to shards.
        where: for the message.
    """
    if len(labels) <= MIXED:
        return
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    held = np.mean([len(np.unique(labels[at : at + MIXED])) for at in range(0, len(labels) - MIXED + 1, MIXED)])
    shuffled = float((1 - (1 - counts / len(labels)) ** MIXED).sum())
    if held < 0.5 * shuffled:
        raise UserError(
            f"{where}: the rows are sorted by class: {MIXED:,} of them hold {held:.3g} of {len(counts):,} classes, where "
            f"shuffled ones would hold {shuffled:.3g}. Shuffle the rows, or give class folders"
        )


PATHS = 100_000  # that braces may stand for


def expanded(pattern: str) -> list[Path]:
    """The paths that webdataset's brace notation expands to."""
    spans = [abs(int(last) - int(first)) for first, last in re.findall(r"\{(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})", pattern)]
    if len(pattern) > 4096 or re.search(r"[0-9]{19}", pattern) or any(span >= PATHS for span in spans):
        raise UserError(f"DATA {shown(pattern)} expands to more than {PATHS} files")
    try:
        names = list(itertools.islice(braceexpand.braceexpand(pattern), PATHS + 1))
    except (ValueError, RecursionError):
        raise UserError(f"DATA {shown(pattern)} is not valid brace notation, such as part-{{000..015}}.tar") from None
    if len(names) > PATHS:
        raise UserError(f"DATA {shown(pattern)} expands to more than {PATHS} files")
    return [Path(name) for name in names]
