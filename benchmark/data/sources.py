"""Sources of a data set's images (rendered scenes, class folders, tars, parquet), in a fixed order.

Legend: N samples in the set, [h, w] pixels, y before x.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark.data import shapes
from benchmark.data.card import Card
from benchmark.data.choice import (
    BESIDE,
    Choice,
    LeftOut,
    annotated,
    check_one_form,
    check_order,
    class_names,
    columns_of,
    expanded,
    split_files,
    split_folder,
    subfolders,
)
from benchmark.data.images import DAMAGE, IMAGE_SUFFIXES, check_damage
from benchmark.data.pool import parallel
from benchmark.data.tars import labelled, unique_keys
from benchmark.files import UserError, changed, listed, read_regular, shown, walk
from benchmark.streams import shuffled

SHUFFLE = 0x5EED  # the key of the one order in which a source's samples are dealt to shards


# --- Sources: where samples come from, in an order that is fixed -----------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One sample on its way into a shard. `data` is None where `trouble` says why it could not be read."""

    key: str
    label: int
    name: str  # for people
    data: bytes | None
    trouble: str = ""
    extension: str = ""  # empty: told from the data


class Source:
    """Samples in a fixed order, dealt to shards in slices. `part` gives a picklable iterable of one slice's Items."""

    kind: str
    where: str = ""  # the folder, for messages
    newest: float = 0.0  # when the last of its files changed; their names and sizes alone are the source's identity
    classes: tuple[str, ...] | int
    ignored: int = 0  # files that are no pictures
    dropped: int = 0  # pictures of classes that the card does not name
    left_out: tuple[tuple[str, str], ...] = ()  # (name, reason) of pictures that are known beforehand not to be taken

    def identity(self) -> Any:
        """A JSON value that changes when the source does; cheap, so no picture is read for it."""
        raise NotImplementedError

    def prepare(self, workers: int) -> None:
        """Reads the source; see `ready`."""

    _ready = False

    def ready(self, workers: int = 1) -> None:
        """Reads the source, once. Only when shards are missing, for it may take minutes."""
        if not self._ready:
            self.prepare(workers)
            self._ready = True

    def __len__(self) -> int:
        raise NotImplementedError

    def part(self, start: int, stop: int) -> Iterable[Item]:
        raise NotImplementedError


class Rendered(Source):
    """The embedded data set: scenes of a split, rendered at the card's size."""

    kind = "shapes"

    def __init__(self, card: Card) -> None:
        if card.size is None or card.count < 1:
            raise UserError(f"card {card.name}: rendered images need a `size` and a `count`")
        if card.class_count != len(shapes.CLASSES):
            raise UserError(f"card {card.name}: says {card.class_count} classes; shapes has {len(shapes.CLASSES)}")
        self.classes, self.size, self.count = shapes.CLASSES, card.size, card.count

    def identity(self) -> Any:
        return [list(self.size), self.count, shapes.REVISION]

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Iterable[Item]:
        return _RenderedPart(self.size, start, stop)


@dataclass(frozen=True)
class _RenderedPart:
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
    """A tree <class>/.../<file>: ImageNet's layout, or any with one folder a class. Labels follow the sorted class names.

    Of pictures of one's own that lie there without class folders, all are of one class.
    """

    kind = "folder"

    def __init__(self, root: Path, choice: Choice = Choice()) -> None:  # noqa: B008 (frozen)
        self.root, self.choice, self.where = root, choice, str(root)
        self.walked = {str(root): changed(root)}  # folders, and when they changed last
        named = annotated(root)
        folders = subfolders(root)
        found: list[tuple[str, str, int]] = []  # (path below root, class, bytes)
        self.ignored = 0
        for name in folders:
            for folder, names in walk(root / name):
                self.walked[folder] = changed(folder)
                self._add(found, folder, names, name, named)
        if choice.own:
            beside: list[tuple[str, str, int]] = []
            ignored = self.ignored
            self._add(beside, *next(walk(root)), root.name, named)
            if not found:
                found, folders = beside, [root.name]
            else:
                self.ignored = ignored
                if len(beside) > len(found):
                    raise UserError(
                        f"DATA {root} has {len(beside):,} images beside its class folders and {len(found):,} in them: move the "
                        "images into class folders, or the folders elsewhere"
                    )
                self.left_out = tuple((path, BESIDE) for path, _, _ in beside)
        if named:
            folders = sorted(set(named.values()))
        if choice.names is not None:
            table, self.classes = choice.labels(Counter(name for _, name, _ in found), None, str(root))
            self.dropped = sum(name not in table for _, name, _ in found)
        else:
            table, self.classes = {name: label for label, name in enumerate(folders)}, tuple(folders)
        self.files = [(path, table[name], size) for path, name, size in found if name in table]  # (path, label, bytes)
        self.order = shuffled(len(self.files), SHUFFLE)  # files come sorted by class; a shard has to hold many classes
        self._identity = self._summary()

    def _add(self, found: list[tuple[str, str, int]], folder: str, names: list[str], name: str, named: dict[str, str]) -> None:
        for file in names:
            path = os.path.join(folder, file)
            if not file.lower().endswith(IMAGE_SUFFIXES):
                self.ignored += 1
                continue
            try:
                state = os.stat(path)  # the only call a file: on a network's file system each takes its time
                size, self.newest = state.st_size, max(self.newest, state.st_mtime, state.st_ctime)
            except OSError as error:  # a link to nothing is a picture that cannot be read, which the manifest will say
                check_damage(error, path)
                size = -1
            place = os.path.relpath(path, self.root).replace(os.sep, "/")
            found.append((place, named.get(place, name), size))

    def identity(self) -> Any:
        return self._identity

    def _summary(self) -> Any:
        """Of all files as found: `_look` leaves some out later, and a source has one identity, before that and after it."""
        summary = hashlib.sha256()
        for path, label, size in self.files:
            summary.update(f"{path}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
        return [len(self.files), summary.hexdigest(), list(self.classes)]

    def prepare(self, workers: int) -> None:
        if self.choice.own:
            self._look()
        self.keys = unique_keys([os.path.splitext(path)[0] for path, _, _ in self.files])

    def _look(self) -> None:
        """Leaves out what cannot be used, as far as a file's first bytes tell: a class that has nothing else is no class."""
        kept, left_out = [], []
        for path, label, size in self.files:
            try:
                with Image.open(self.root / path) as image:
                    self.choice.check(image)
            except DAMAGE as error:
                check_damage(error, self.root / path)
                left_out.append((path, str(error) if isinstance(error, LeftOut) else f"{type(error).__name__}: {error}"))
            else:
                kept.append((path, label, size))
        self.left_out += tuple(left_out)
        labels = sorted({label for _, label, _ in kept})
        self.files = [(path, labels.index(label), size) for path, label, size in kept]
        self.classes = tuple(self.classes[label] for label in labels)
        self.order = shuffled(len(self.files), SHUFFLE)

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
                data = read_regular(Path(self.root, path))
            except OSError as error:
                check_damage(error, Path(self.root, path))
                yield Item(key, label, path, None, str(error.strerror))
            else:
                yield Item(key, label, path, data)


class _Packed(Source):
    """Files of many samples each, known by their names and sizes."""

    def __init__(self, paths: list[Path], choice: Choice = Choice()) -> None:  # noqa: B008 (frozen)
        self.paths, self.choice, self.classes = paths, choice, 0
        self.where = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self.newest = max(max(path.stat().st_mtime, path.stat().st_ctime) for path in paths)

    def identity(self) -> Any:
        return [[path.name, path.stat().st_size] for path in self.paths]


class Tars(_Packed):
    """Existing webdataset tars whose samples hold a picture and a label (`cls`, or `label` in `json`)."""

    kind = "tars"

    def prepare(self, workers: int) -> None:
        found: dict[int, list[tuple[str, int, str, int, int]]] = {}
        for number, samples in parallel(labelled, list(enumerate(self.paths)), workers):
            found[number] = samples
        self.samples = [(number, *sample) for number in sorted(found) for sample in found[number]]
        if self.choice.relabels:
            counts = Counter(sample[2] for sample in self.samples)
            table, self.classes = self.choice.labels(counts, None, str(self.paths[0].parent))
            self.samples = [(*sample[:2], table[sample[2]], *sample[3:]) for sample in self.samples if sample[2] in table]
            self.dropped = counts.total() - len(self.samples)
        elif any(sample[2] is None for sample in self.samples):
            number, key = next(sample[:2] for sample in self.samples if sample[2] is None)
            raise UserError(f"{self.paths[number]}: sample '{key}' has no label (a member `cls`, or `label` in `json`)")
        self.keys = unique_keys([sample[1] for sample in self.samples])
        self.order = shuffled(len(self.samples), SHUFFLE)

    def __len__(self) -> int:
        self.ready()
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
                    if len(opened) >= 64:  # a shard takes from every tar there is
                        opened.pop(next(iter(opened))).close()
                    opened[tar] = stack.enter_context(open(self.paths[tar], "rb"))
                opened[tar].seek(offset)
                yield Item(key, label, f"{os.path.basename(self.paths[tar])}:{old}", opened[tar].read(size))


class Parquet(_Packed):
    """Parquet files with a column of picture bytes (or of structs with `bytes`) and one of integer labels.

    Where the card chooses classes, a column of their names serves too; pictures of one's own need no label.
    Rows are read in runs: groups of rows in a shuffled order, each from first to last, since a single row costs its group.
    """

    kind = "parquet"

    def prepare(self, workers: int) -> None:
        import pyarrow as pa  # half a second, for sources of this kind alone
        import pyarrow.parquet as pq

        groups: list[tuple[int, int, int, int]] = []  # file, group, first row of the set, rows
        self.columns, total = list[tuple[str, str]](), 0
        for number, path in enumerate(self.paths):
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path} is not a complete parquet file ({str(error).splitlines()[0]})") from None
            self.columns.append(columns_of(path, file.schema_arrow, self.choice))
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                groups.append((number, group, total, rows))
                total += rows
        self.groups = [groups[i] for i in shuffled(len(groups), SHUFFLE).tolist()]
        self.total, self.table, self.kept = total, None, None
        raws: list[Any] = []
        for path, (_, target) in zip(self.paths, self.columns, strict=True):
            file = pq.ParquetFile(path)
            raws += file.read([target]).column(0).to_pylist() if target else [None] * file.metadata.num_rows
        if self.choice.relabels:
            names = class_names(pq.ParquetFile(self.paths[0]).schema_arrow, self.columns[0][1])
            self.table, self.classes = self.choice.labels(Counter(raws), names, str(self.paths[0].parent))
            self.kept = np.array([raw in self.table for raw in raws])
            self.dropped, self.total = int((~self.kept).sum()), int(self.kept.sum())
        kept = self.kept
        counts = [rows if kept is None else int(kept[first : first + rows].sum()) for _, _, first, rows in self.groups]
        self.ends = np.cumsum(counts)  # in the order in which groups are dealt
        rows = np.concatenate([np.arange(first, first + count) for _, _, first, count in self.groups] or [np.arange(0)])
        check_order(np.array([str(raw) for raw in raws])[rows if kept is None else rows[kept[rows]]], self.where)

    def __len__(self) -> int:
        self.ready()
        return self.total

    def part(self, start: int, stop: int) -> Iterable[Item]:
        runs = []
        for place in range(int(np.searchsorted(self.ends, start, "right")), len(self.groups)):
            number, group, first, rows = self.groups[place]
            taken = np.arange(rows) if self.kept is None else np.flatnonzero(self.kept[first : first + rows])
            at = int(self.ends[place]) - len(taken)
            if at >= stop:
                break
            low, high = max(start - at, 0), min(stop - at, len(taken))
            if low < high:
                runs.append((str(self.paths[number]), self.columns[number], group, first, taken[low:high].tolist()))
        return _ParquetPart(runs, self.table)


@dataclass(frozen=True)
class _ParquetPart:
    runs: list[tuple[str, tuple[str, str], int, int, list[int]]]  # path, columns, group, its first row, rows in it
    table: dict[Any, int] | None  # label of the file -> label of the shards, where they differ

    def __iter__(self) -> Iterator[Item]:
        import pyarrow.parquet as pq  # as above

        for path, (image, target), group, first, taken in self.runs:
            row, wanted = 0, set(taken)
            columns = [image, target] if target else [image]
            with pq.ParquetFile(path) as file:
                for table in file.iter_batches(batch_size=64, row_groups=[group], columns=columns):
                    for i in range(len(table)):
                        if row + i in wanted:
                            number = first + row + i
                            label = table.column(target)[i].as_py() if target else None
                            name = f"{os.path.basename(path)}:{number}"
                            yield self._item(name, number, table.column(image)[i].as_py(), label)
                    row += len(table)
                    if row > taken[-1]:
                        break

    def _item(self, name: str, row: int, image: Any, label: Any) -> Item:
        if self.table is not None:
            label = self.table[label]
        if not isinstance(label, int):
            raise UserError(f"{name}: the label is {label!r}; labels must be integers")
        data = image.get("bytes") if isinstance(image, dict) else image
        return Item(f"{row:08d}", label, name, data, "" if data is not None else "holds no bytes")


def source(card: Card, path: str | Path | None = None, split: str = "train") -> Source:
    """Finds out what a path holds.

    Args:
        path: a tree of class folders, a folder of tars or of parquet files, one such file, or webdataset's brace notation
            for many; None for a card whose pictures are rendered here.
        split: "train" or "val", where what lies there has several.

    Raises:
        UserError: there is nothing usable.
    """
    if card.kind == "shapes":
        if path is not None:
            raise UserError(f"the images of '{card.name}' are rendered: DATA must be empty")
        return Rendered(card)
    if card.kind == "shards":
        raise UserError(f"'{card.name}' consists of existing shards: nothing to do")
    if path is None:
        raise UserError(f"'{card.name}' needs DATA, the folder of its images{f': {card.source}' if card.source else ''}")
    paths = expanded(str(path)) if "{" in str(path) and not os.path.exists(path) else [Path(path)]
    for each in paths:
        if not os.path.exists(each):
            raise UserError(f"DATA {shown(str(each), 200)} does not exist")
    choice = Choice.of(card)
    if paths[0].is_dir():
        root = paths[0]
        below = split_folder(root, split, choice.own)
        unpacked = below != root and any(name.lower().endswith(IMAGE_SUFFIXES) for _, names in walk(below) for name in names)
        others: list[Path] = []  # of another split
        for ending in () if unpacked else ("tar", "parquet"):  # torchvision leaves ImageNet's tars beside train/ and val/
            packed = sorted(p for p in root.glob(f"*.{ending}") if not p.name.startswith("."))
            if paths := split_files(packed, split):
                check_one_form(root, paths)
                break
            others += packed
        else:
            folder = Folder(below, choice)
            if not folder.files:
                if others:
                    raise UserError(f"DATA {root} holds {listed(p.name for p in others)}, but nothing of the split '{split}'")
                files, folders = f"image files ({', '.join(IMAGE_SUFFIXES)})", "class folders with"
                expected = f"{files}, plain or in a folder per class" if choice.own else f"{folders} {files}"
                raise UserError(f"DATA {below} holds no images: expected {expected}, *.tar or *.parquet")
            return folder
    if irregular := [p for p in paths if not os.path.isfile(p)]:
        raise UserError(f"DATA {listed(irregular)}: not a regular file")
    if all(p.suffix == ".tar" for p in paths):
        return Tars(paths, choice)
    if all(p.suffix == ".parquet" for p in paths):
        return Parquet(paths, choice)
    raise UserError(f"DATA {path} is neither a folder nor tars nor parquet files")
