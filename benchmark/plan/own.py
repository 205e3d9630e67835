"""Pictures of one's own: the protocol that DATA alone stands for, and what of its rules follows from what lies there."""

from __future__ import annotations

from pathlib import Path

from benchmark import lazy, protocol
from benchmark.data.card import load_card
from benchmark.data.index import Index
from benchmark.files import UserError, read_json
from benchmark.plan.place import Run
from benchmark.protocol import Protocol

FOLDER, EMBEDDED = "folder", "shapes"  # protocols: with DATA, and without


def default_protocol(data: str) -> str:
    """The protocol where none is named: pictures of one's own have theirs, and so have shards that were made of them."""
    manifest = Path(data) / "manifest.json"
    if not data or (manifest.is_file() and load_card(read_json(manifest)["card"]).kind != "own"):
        return EMBEDDED
    return FOLDER


def fitted(name: str, overrides: list[str] | tuple[str, ...], run: Run) -> Protocol:
    """A protocol, with what the pictures decide where its card takes any: classes, reference, batch. Writes their shards.

    These are overrides like any other, before those that are given, so that a launched process loads the same rules.

    Raises:
        UserError: there are no pictures, or too few for a reference.
    """
    rules = protocol.load(name, overrides)
    if load_card(rules.data.card).kind != "own":
        return rules
    if not run.data:
        raise UserError(f"{rules.name} is for pictures of your own: give their folder as DATA")
    index = Index(lazy.module("benchmark.run.train").prepared(rules, run))
    if len(index) < 4:
        raise UserError(f"{index.folder} has {len(index)} usable pictures; a reference needs at least 4")
    derived = [f"core.classes={index.classes}"]
    for key, value in (("score.reference", rules.score.reference), ("score.nearest", rules.score.nearest),
                       ("train.batch", rules.train.batch)):  # fmt: skip
        if value > len(index):
            derived.append(f"{key}={len(index)}")
    return protocol.load(name, [*derived, *overrides])
