"""The denoising loss of averaged weights as the score of a cell, and the `loss` command, which samples nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmark import progress, registry
from benchmark.data.card import autoencoder_of, load_card
from benchmark.data.index import Index
from benchmark.evaluate import denoising
from benchmark.evaluate.denoising import HeldOut
from benchmark.evaluate.reference import Scenes, Shards
from benchmark.evaluate.score import options_of
from benchmark.files import UserError, shown
from benchmark.identity import Cell
from benchmark.plan.dataset import DataSet
from benchmark.plan.place import Run, device
from benchmark.protocol import Protocol
from benchmark.results.compare import Comparison, compare
from benchmark.run.sample import built
from benchmark.run.train import pictures, trained


def heldout_images(protocol: Protocol, test: str, run: Run, device: torch.device | str, count: int = denoising.IMAGES,
                   folder: Path | str = "") -> HeldOut:  # fmt: skip
    """The images of a test size on which losses are taken, as the core sees them.

    Args:
        folder: of shards that nothing was trained on. Without one it is the held-out scenes, or the data set's own shards.
    """
    card = load_card(protocol.data.card)
    scenes = card.kind == "shapes" and not folder
    source = Scenes(denoising.SPLIT) if scenes else Shards(folder or pictures(protocol, run))
    if folder:
        check_classes(source.index, protocol, run)
    autoencoder = autoencoder_of(card) if protocol.data.representation == "latents" else ""
    return denoising.heldout(source, test, count, autoencoder, device, trained_on=not scenes and not folder)


def check_classes(index: Index, protocol: Protocol, run: Run) -> None:
    """Raises UserError where the classes of held-out shards are not those that the core was trained on: labels are numbers."""
    if index.classes != protocol.core.classes:
        raise UserError(f"{index.folder} has {index.classes} classes, the core of {protocol.name} {protocol.core.classes}")
    own = DataSet(protocol, run).images
    names, trained = index.manifest["class_names"], Index(own).manifest["class_names"] if own else None
    if names and trained and names != trained:
        number = next(i for i, pair in enumerate(zip(names, trained, strict=True)) if pair[0] != pair[1])
        raise UserError(f"{index.folder}: class {number} is {shown(names[number])}, in training it was {shown(trained[number])}")


def cell_loss(cell: Cell, run: Run, images: HeldOut) -> dict[str, Any]:
    """The denoising loss of a cell, as the score of its record; `images` are of the cell's test size."""
    method = built(cell, run).to(images.data.device)
    with progress.stage(f"loss {cell}", 1, "forward") as stage:
        found, options = denoising.losses(method, images, report=stage.report), options_of(cell.protocol)
        return denoising.entry(found, method, images, options.resamples, options.level)


class Loss(NamedTuple):
    """The denoising loss of a cell as the score of a record, its comparison with another method's, and on how many images."""

    cell: Cell
    entry: dict[str, Any]
    comparison: Comparison | None
    count: int


def compared(cells: Sequence[Cell], run: Run, against: str = "", folder: Path | str = "") -> list[Loss]:
    """The denoising loss of a method's cells, and each in pairs against another method's.

    Args:
        against: a method; "" takes the one whose checkpoint the cells' method uses, and none where it has its own.
        folder: see `heldout_images`.
    """
    for cell in cells:  # before any work
        for name in (cell.method, registry.check(against) if against else cell.training.method):
            trained(dataclasses.replace(cell, method=name).training, run)
    found = []
    for cell in cells:
        other = against or cell.training.method
        images = heldout_images(cell.protocol, cell.test, run, device(), folder=folder)
        own, comparison = cell_loss(cell, run, images), None
        if other != cell.method:
            comparison = compare(own, cell_loss(dataclasses.replace(cell, method=other), run, images))
        found.append(Loss(cell, own, comparison, len(images.data)))
    return found


def print_losses(
    found: Sequence[Loss],
    against: str,
    levels: bool = False,
    console: Console | None = None,
) -> None:
    """Prints the losses of a method by test size; with `levels` also at each noise level."""
    console = console or Console()
    method, seed = found[0].cell.method, found[0].cell.seed
    kind = "training images" if any(loss.entry["trained_on"] for loss in found) else "images"
    table = Table(title=f"denoising loss of {method}, seed {seed}, on {found[0].count} {kind} at each test size, 95 % intervals")
    pairs = any(loss.comparison for loss in found)
    for column in ("train", "test", "loss", "low", "high", *((f"minus {against}'s", "low", "high", "verdict") if pairs else ())):
        table.add_column(column, justify="right")
    for cell, own, comparison, _ in found:
        figures = [f"{own[key]:.5f}" for key in ("value", "low", "high")]
        if comparison:
            small = any(0 < abs(value) < 5e-6 for value in (comparison.difference, comparison.low, comparison.high))
            figures += [f"{value:+.1e}" if small else f"{value:+.5f}" for value in
                        (comparison.difference, comparison.low, comparison.high)]  # fmt: skip
            figures.append(comparison.verdict)
        table.add_row(cell.train, cell.test, *figures)
    console.print(table)
    if levels:
        table = Table(title="at each noise level (0 is data, 1 is noise)")
        for column in ("train", "test", *(f"{time:.3f}" for time in found[0].entry["times"])):
            table.add_column(column, justify="right")
        for cell, own, *_ in found:
            table.add_row(cell.train, cell.test, *(f"{value:.4f}" for value in own["levels"]))
        console.print(table)
