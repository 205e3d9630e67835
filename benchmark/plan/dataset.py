"""A protocol's data as found on this machine; inspects only, and does not need torch."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from pathlib import Path

from benchmark import lazy, registry
from benchmark.data import shapes, sources, writer
from benchmark.data.card import Card, autoencoder_of, load_card
from benchmark.data.index import folder_name, is_shards, manifest_path, manifests, read_manifest
from benchmark.data.remote import REMOTE
from benchmark.files import UserError, changed
from benchmark.identity import Training
from benchmark.plan.place import Run
from benchmark.protocol import Protocol, size_name

PICTURE = 112_000  # bytes of one of ImageNet's pictures in a shard, on average
PACKED = 0.4  # stored over raw bytes of a rendered picture (PNG)
OVERHEAD = 2_000  # bytes that tar adds to a sample


class DataSet:
    """Where the shards, latents and real images of a protocol lie, as far as they do.

    What it finds is kept: make a new one after shards or latents have been written.
    """

    def __init__(self, protocol: Protocol, run: Run) -> None:
        self.protocol, self.run = protocol, run

    @cached_property
    def card(self) -> Card:
        card = load_card(self.protocol.data.card)
        return dataclasses.replace(card, count=self.protocol.data.count) if self.protocol.data.count else card

    @cached_property
    def source(self) -> sources.Source | None:
        """The source of shards; None if its location was not given, or shards were given instead."""
        if self.given or (self.card.kind != "shapes" and not self.run.data):
            return None
        return _source(self.card, self.run.data)

    @cached_property
    def given(self) -> Path | str | None:
        """The folder of shards that `run.data` is already, or the place of one that is read through a cache (data/remote.py)."""
        if REMOTE.match(self.run.data):
            return self.run.data
        return Path(self.run.data) if self.run.data and is_shards(self.run.data) else None

    @cached_property
    def folder(self) -> Path | str | None:
        """Where the shards of the pictures are, or will be; None where that cannot be told."""
        if self.given:
            return self.given
        return None if self.source is None else writer.folder_of(self.card, self.source, self.run.out / "data")

    @cached_property
    def gives_latents(self) -> bool:
        """Whether `run.data` is a folder of latents."""
        return self.given is not None and self._manifests[self.given]["kind"] == "latents"

    @property
    def pictures(self) -> Path | str | None:
        """As `folder`, but of the pictures where `run.data` is a folder of latents: the shards that these were made of."""
        return self.images if self.gives_latents else self.folder

    @cached_property
    def _manifests(self) -> dict[Path | str, dict]:
        found = manifests(self.run.out / "data")
        if self.given:
            found[self.given] = read_manifest(manifest_path(self.given))
        return found

    @cached_property
    def fingerprint(self) -> str | None:
        """The identity of the pictures; known before they are written."""
        if self.given:
            manifest = self._manifests[self.given]
            return manifest["images"] if manifest["kind"] == "latents" else manifest["fingerprint"]
        return None if self.source is None else writer.fingerprint(self.card, self.source)

    @property
    def named(self) -> str | None:
        """The identity of the pictures that DATA names, however its path is written; "" where it names none."""
        return self.run.data and self.fingerprint

    def require(self) -> None:
        """Raises UserError where nothing says where the pictures are."""
        if self.folder is None:
            sources.source(self.card)

    def check(self) -> None:
        """Raises UserError where the shards that were given are of another data set than the protocol's."""
        if not self.given:
            return
        manifest = self._manifests[self.given]
        if manifest["card"] != self.card.name:
            raise UserError(
                f"{self.run.data} holds shards of {manifest['card']}, but {self.protocol.name} uses {self.card.name}: "
                "give those, or choose a protocol for that data set"
            )
        if self.protocol.data.representation == "pixels" and manifest["kind"] == "latents":
            raise UserError(f"{self.run.data} holds latents, but {self.protocol.name} trains on pixels: see `make shards`")
        if self.card.kind == "shapes" and self.fingerprint != writer.fingerprint(self.card, sources.source(self.card)):
            raise UserError(
                f"{self.run.data} holds other shards of {self.card.name} than {self.protocol.name} trains on: leave DATA empty "
                "to render them"
            )

    @cached_property
    def images(self) -> Path | str | None:
        """The complete shards of pictures."""
        found = [path for path, manifest in self._manifests.items() if manifest["fingerprint"] == self.fingerprint]
        return found[-1] if found else None

    @cached_property
    def latents(self) -> dict[str, list[Path | str]]:
        """The complete shards of latents, by the size of their pictures; several where there were several autoencoders."""
        found: dict[str, list[Path | str]] = {}
        for path, manifest in self._manifests.items():
            if manifest["kind"] == "latents" and manifest["images"] == self.fingerprint:
                found.setdefault(size_name(*manifest["size"]), []).append(path)
        return found

    @property
    def count(self) -> int:
        """Number of images; 0 if unknown."""
        if self.images is not None:
            return self._manifests[self.images]["count"]
        if self.given:
            return self._manifests[self.given]["count"]
        return self.card.count if self.source is None else len(self.source)

    @property
    def picture_bytes(self) -> float:
        """Bytes of a picture in a shard."""
        if self.images is not None:
            manifest = self._manifests[self.images]
            return sum(shard["bytes"] for shard in manifest["shards"]) / max(manifest["count"], 1)
        if self.source is not None and self.card.kind != "shapes" and len(self.source):
            return mean_bytes(self.source) + OVERHEAD
        return PACKED * 3 * math.prod(self.card.size) + OVERHEAD if self.card.size else PICTURE + OVERHEAD

    def augments(self, method: str) -> bool:
        """Whether a training needs pictures because its augmentation precedes the autoencoder."""
        name = registry.trained_name(method)
        return registry.augments(name, self.protocol.options.get(name, {}))

    def seen_by(self, training: Training) -> str | None:
        """The identity of what a training sees; None where it is not known before the autoencoder has been loaded."""
        if self.protocol.data.representation == "pixels":
            return self.fingerprint
        found = self.latents.get(training.size, [])
        if len(found) == 1:
            manifest = self._manifests[found[0]]
            stored = manifest["fingerprint"]
            # Those encoded on the way have the identity of the stored ones, if by the same autoencoder.
            same = not self.augments(training.method) or manifest["autoencoder"]["name"] == autoencoder_of(self.card)
            if same or training.folder(self.run.out, stored).is_dir():
                return stored
        begun = any((self.run.out / "trainings").glob(f"{training.method}-{training.size}-s{training.seed}-*"))
        if not begun or not (found or (self.images and self.augments(training.method))):
            return None
        return lazy.Module("benchmark.run.train").open_data(training, self.run).hash  # loads the autoencoder

    def real(self) -> tuple[str, str]:
        """(name, hash of the content) of the real images that references are made of.

        Raises:
            UserError: their location was not given.
        """
        if self.card.kind == "shapes":
            return "shapes", shapes.REVISION
        if self.gives_latents and self.pictures is None:
            raise UserError(f"{self.run.data} holds latents, and references are made of the images: give their folder as DATA")
        if self.pictures is None or self.fingerprint is None:
            raise UserError(f"the reference of {self.card.name} is made from its images: give their folder as DATA")
        return folder_name(self.pictures, self._manifests.get(self.pictures)), self.fingerprint


def mean_bytes(source: sources.Source) -> float:
    """Of a source's images; of those in tars and parquet files by the files' size, which is that of all they hold."""
    if isinstance(source, sources.Folder):
        return sum(max(size, 0) for *_, size in source.files) / len(source)
    assert isinstance(source, sources.Tars | sources.Parquet), "rendered images are no files"
    return sum(path.stat().st_size for path in source.paths) / (len(source) + source.dropped)


_walked: dict[tuple, sources.Folder] = {}  # the last one


def _source(card: Card, path: str) -> sources.Source:
    """The source at a path. A folder of pictures is walked once: a million files may take minutes, and every stage asks."""
    key = (repr(card), path, changed(path))
    if key in _walked and all(changed(folder) == when for folder, when in _walked[key].walked.items()):
        return _walked[key]
    _walked.clear()
    found = sources.source(card, path or None)
    if isinstance(found, sources.Folder):
        _walked[key] = found
    return found


def forget() -> None:
    """Lets go of the list of a folder's pictures, which a training would hold for days."""
    _walked.clear()
