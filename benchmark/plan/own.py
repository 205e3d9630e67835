"""The user's own images: the protocol that DATA alone selects, and the settings that follow from the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmark import lazy, protocol
from benchmark.data.card import load_card
from benchmark.data.index import Index, is_shards, read_manifest
from benchmark.files import UserError, listed, shown
from benchmark.plan.dataset import DataSet
from benchmark.plan.place import Run
from benchmark.protocol import Protocol

FOLDER, EMBEDDED = "folder", "shapes"  # protocols: with DATA, and without


def default_protocol(data: str) -> str:
    """The protocol where none is named: pictures of one's own have theirs, and so have shards that were made of them."""
    if not data:
        return EMBEDDED
    if not is_shards(data):
        return FOLDER
    card = read_manifest(Path(data) / "manifest.json")["card"]
    for name in (FOLDER, EMBEDDED):
        if protocol.load(name).data.card == card:
            return name
    raise UserError(f"{data} holds shards of {shown(card)}: choose a protocol for that data set with --protocol")


def fitted(name: str, overrides: list[str] | tuple[str, ...], run: Run, write: bool = True) -> Protocol:
    """A protocol, with what the pictures decide where its card takes any: classes, reference, batch. Writes their shards.

    These are overrides like any other, before those that are given, so that a launched process loads the same rules.

    Args:
        write: whether shards are written. Without them pictures are only counted, damaged ones that look right included.

    Raises:
        UserError: there are no pictures, or too few for a reference; or a class has none that can be used.
    """
    rules = protocol.load(name, overrides)
    if load_card(rules.data.card).kind != "own":
        return rules
    if not run.data:
        raise UserError(f"{rules.name} is for your own images: give their folder as DATA")
    folder = lazy.Module("benchmark.run.train").prepared(rules, run) if write else DataSet(rules, run).images
    count, classes = counted(rules, run) if folder is None else (len(index := Index(folder)), index.classes)
    if count < 4:
        raise UserError(f"{run.data} has {count} usable images; a reference needs at least 4")
    if folder is not None and (empty := without_images(index)):
        raise UserError(
            f"{run.data}: no image of {len(empty)} of the {classes} classes can be used ({listed(empty)}), see "
            f"{folder}/manifest.json: add usable images of these classes, or remove the classes"
        )
    derived = [f"core.classes={classes}"]
    for key, value in (("score.reference", rules.score.reference), ("score.nearest", rules.score.nearest),
                       ("train.batch", rules.train.batch)):  # fmt: skip
        if value > count:
            derived.append(f"{key}={count}")
    return protocol.load(name, [*derived, *overrides])


def without_images(index: Index) -> list[str]:
    """The classes of which no picture could be used, where that showed only when all its pixels were read."""
    counts, names = np.bincount(index.rows["label"], minlength=index.classes), index.manifest["class_names"]
    return [names[label] if names else str(label) for label in np.flatnonzero(counts == 0)]


def counted(rules: Protocol, run: Run) -> tuple[int, int]:
    """(pictures, classes) of a source, as far as they are known before shards of it are written."""
    source = DataSet(rules, run).source
    if source is None:
        raise UserError(f"{run.data} holds no images: {rules.name} needs a folder of images, or of shards of them")
    source.ready(run.writers)
    return len(source), source.classes if isinstance(source.classes, int) else len(source.classes)
