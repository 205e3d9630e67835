"""The sampling stage: from weights to features, the first images and the denoising loss, with one seed per image.

Images become features as they are made, batch by batch, and only the first ones stay on disk unless all are asked for. A batch is
complete or absent, so an interrupted cell continues, and any number of processes shares one: process r of n makes the missing
batches r, r + n, ... The batch is the protocol's, so the same images come out however many processes there are.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from safetensors.numpy import save_file

from benchmark import progress, registry
from benchmark.board.real import sheet
from benchmark.data.card import autoencoder_of, load_card
from benchmark.evaluate import detectors
from benchmark.evaluate.detectors.base import at_rest, outputs_of
from benchmark.evaluate.samples import Images, Unit, chunk_name, chunk_shape, read_chunk, write_chunk
from benchmark.evaluate.score import is_done, unit_file
from benchmark.files import UserError, atomic, listed, read_fields, read_json, write_json
from benchmark.identity import Cell, features_folder
from benchmark.model.autoencoder import autoencoder_identity, decoder, to_uint8
from benchmark.model.draws import Draws
from benchmark.model.method import Method
from benchmark.model.precision import autocast, effective
from benchmark.plan import cost, needs
from benchmark.plan.layout import CHUNKS, DONE, GRID, REPORT
from benchmark.plan.place import Run, check_ranks, device, machine
from benchmark.plan.stages import features_of, images_folder, is_sampled, kept_images
from benchmark.protocol import Precision, Protocol, size_hw
from benchmark.results import record
from benchmark.run.ranks import environment
from benchmark.run.train import exclusive, load_weights, quieten, trained

GRID_IMAGES = 32
TRIED = 256  # tokens of a grid that a method is tried out on: biases of more take long on a processor


def chunk_path(folder: Path, number: int) -> Path:
    return folder / CHUNKS / chunk_name(number)


def units(cell: Cell, folder: Path) -> Images:
    """The cell's batches as units of features; their images are not there but for the first ones."""
    config = cell.protocol.sample
    starts = range(0, config.count, config.batch)
    found = [
        Unit(first, min(config.batch, config.count - first), folder.name, lambda k=k: read_chunk(chunk_path(folder, k)))
        for k, first in enumerate(starts)
    ]
    return Images(folder.name, size_hw(cell.test), found, folder.name)


def has_chunk(path: Path, unit: Unit, size_hw: tuple[int, int]) -> bool:
    """Whether the images of a batch are there, all of them; a file that is damaged is none."""
    if not path.is_file():
        return False
    try:
        return chunk_shape(path) == (unit.count, *size_hw)
    except UserError:
        return False


def lost(cell: Cell, folder: Path, place: Path | None, keep: bool) -> list[int]:
    """The batches of a cell whose features, or images that are to stay, are missing or damaged."""
    found, kept = units(cell, folder), kept_images(cell.protocol, keep)
    return [
        k
        for k, unit in enumerate(found.units)
        if place is None
        or not is_done(unit_file(place, k), unit)
        or (unit.start < kept and not has_chunk(chunk_path(folder, k), unit, found.size_hw))
    ]


def sample(cell: Cell, run: Run) -> Path:
    """Generates the images of a cell, or finds them made.

    A training-free method whose encodings equal its base's at this grid, bit by bit, has the same images: they are made once,
    under the base's name.

    Returns:
        the cell's folder: features/, chunks/chunk-00000.tar ... (PNG), grid.png, samples.json.
    """
    training, _ = trained(cell.training, run)
    report = read_fields(training / REPORT, "fingerprint", "autoencoder")
    folder = cell.folder(run.out, report["fingerprint"])
    title = f"sample {cell.method} {cell.train} -> {cell.test}"
    if is_sampled(folder, cell.protocol, run.keep):
        images = images_folder(folder)
        if not lost(cell, images, features_of(images, cell.protocol), run.keep):
            progress.say(f"{title}: already complete, skipped ({folder})")
            return folder
        if progress.first_rank():
            (images / DONE).unlink(missing_ok=True)
    check_ranks(run)
    base = Cell(cell.protocol, cell.training.method, cell.train, cell.test, cell.seed)
    same = base.method != cell.method and same_encodings(cell)
    if base.method != cell.method and cell.test == cell.train and not same:
        progress.say(f"{title}: encodings differ from those of {base.method} at the training size, where they should be equal")
    if same:
        made = sample(base, run)
        if progress.first_rank():
            write_json(folder / DONE, read_json(made / DONE) | {"same_as": made.name})
        progress.say(f"{title}: encodings are identical to those of {base.method} at this size, so its images are reused")
        return folder
    generate(cell, folder, training, report, title, run)
    return folder


def same_encodings(cell: Cell) -> bool:
    """Whether a method's encodings at a cell's grid equal those of its base bit by bit, at every noise level of the sampler."""
    method, base = (
        registry.build(name, shallow(cell.protocol), cell.train, cell.seed) for name in (cell.method, cell.training.method)
    )
    grid_hw, times = cell.protocol.grid(cell.test), [None]
    if method.timed:
        times = method.sampling_times(grid_hw)
    return all(equal(method.encoding(grid_hw, time), base.encoding(grid_hw, time)) for time in times)


def described(protocol: Protocol, name: str) -> dict[str, Any]:
    """What a record says of a method.

    Raises:
        UserError: the protocol's options are not the method's.
    """
    cls = registry.load(name)
    options = vars(cls.make_options(protocol.options.get(name, {})))
    trained_as = registry.trained_name(name)
    return record.rounded({"name": name, "title": cls.title, "trained_as": trained_as, "options": options, "note": cls.note})


def check_settings(protocol: Protocol, methods: Sequence[str]) -> None:
    """Checks what can be checked of a run without computing anything.

    Raises:
        UserError: the options, the title or the note of a method, or the file of the detector's weights, are not what they must
            be; or a checkpoint that trainings start from was not given.
    """
    protocol.checkpoint()
    trained = set(map(registry.trained_name, methods))
    for words in protocol.overrides:
        parts = words.partition("=")[0].split(".")
        if parts[0] == "options" and len(parts) > 1 and parts[1] not in {*methods, *trained}:
            raise UserError(f"{words}: {parts[1]} is not among the methods of this run ({listed(methods)})")
        if parts[:2] == ["train", "lr_of"] and len(parts) > 2 and parts[2] not in trained:
            raise UserError(f"{words}: {parts[2]} is not trained in this run ({listed(sorted(trained))})")
    weights = os.environ.get(registry.WEIGHTS_VARIABLE)
    if weights and not Path(weights).is_file():
        raise UserError(f"{registry.WEIGHTS_VARIABLE} is {weights}, which is not a file; give the path of weights, or unset it")
    titles = {other: registry.about(other).title for other in registry.names()}
    for name in methods:
        try:
            cls = registry.load(name)
        except UserError:
            raise
        except Exception:  # in a method's own code: `try_out`, or its job, tells it, and it costs the others nothing
            continue
        about = described(protocol, name)
        try:
            record.validate_method(about)
        except UserError as error:
            raise UserError(f"methods/{name}.py: {error}") from None
        if "title" not in vars(cls):
            raise UserError(f"methods/{name}.py: give the class a title of its own")
        if same := [other for other, title in titles.items() if title == cls.title and other != name]:
            raise UserError(f"methods/{name}.py: the title '{cls.title}' is that of methods/{same[0]}.py")


def try_out(protocol: Protocol, name: str, seed: int) -> None:
    """Builds a method and makes its encodings for the protocol's grids, as training and sampling would, but for large ones.

    Raises:
        UserError: an encoding is not what it must be.
    """
    for train, tests in protocol.cells.items():
        method = registry.build(name, shallow(protocol), train, seed)
        if method.trains_as is None and math.prod(method.train_grid) <= TRIED:
            method.check(method.encode(method.train_grid, draws=Draws(seed, 0, (0, 2), 2)), method.train_grid, 2)
        for test in tests:
            grid_hw = protocol.grid(test)
            if math.prod(grid_hw) <= TRIED:
                for time in method.sampling_times(grid_hw) if method.timed else [None]:
                    method.check(method.encode(grid_hw, time=time), grid_hw)


def shallow(protocol: Protocol) -> Protocol:
    """The protocol with a core that costs nothing to build and has the same encodings: heads and blocks are what they are."""
    return dataclasses.replace(protocol, core=dataclasses.replace(protocol.core, mlp_ratio=1 / protocol.core.width, classes=1))


def equal(a: Any, b: Any) -> bool:
    """Whether two encodings, or fields of them, are the same."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):  # biases may be made when asked for
        return len(a) == len(b) and all(map(equal, a, b))
    if hasattr(a, "__dataclass_fields__") and type(a) is type(b):
        return all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return type(a) is type(b) and a == b


def generate(cell: Cell, folder: Path, training: Path, report: dict[str, Any], title: str, run: Run) -> None:
    """Makes what is missing of a cell's batches."""
    config = cell.protocol.sample
    about = f"{title}, {config.count:,} images"
    needs.check_memory(needs.sampling(cell.protocol, cell.test), about)
    fabric = launched(run)
    detector = detectors.load(cell.protocol.score.detector, device=fabric.device)
    place, cut = features_folder(folder, detector.name, detector.hash), units(cell, folder).units
    half = registry.detector_facts(detector.name).bytes == 2
    with exclusive(folder, "sampling", wait=True):  # cells that share their base's images may be made at the same time
        barrier(fabric)  # what is missing is seen when the first process has the folder to itself
        missing = lost(cell, folder, place, run.keep)
        kept = kept_images(cell.protocol, run.keep)
        share = len(missing) / len(cut)
        needs.check_disk(cost.sampling(cell.protocol, cell.test, kept).bytes * share, about, run.out)
        barrier(fabric)  # every process has seen the same files before one of them writes
        autoencoder = checked_autoencoder(cell.protocol, report)
        method = registry.build(cell.method, cell.protocol, cell.train, cell.seed)
        load_weights(method, training, report["fingerprint"])
        method = method.to(fabric.device).eval()
        decode = decoder(autoencoder, fabric.device)
        own = missing[fabric.global_rank :: fabric.world_size]
        began = time.monotonic()
        try:
            with progress.stage(title, len(own) * config.steps, "step") as stage:
                for k in own:
                    unit = cut[k]
                    if has_chunk(chunk_path(folder, k), unit, size_hw(cell.test)):  # only its features are missing
                        images = unit.read()
                        stage.advance(config.steps)
                    else:
                        with torch.inference_mode(), autocast(config.precision, fabric.device):
                            numbers = range(unit.start, unit.start + unit.count)
                            images = to_uint8(decode(method.generate(cell.test, cell.seed, numbers, stage.advance)))
                        note_hardware(folder, fabric.global_rank, config.precision)
                        if unit.start < kept:
                            write_chunk(chunk_path(folder, k), images, unit.start)
                    with atomic(unit_file(place, k)) as draft:
                        save_file(at_rest(outputs_of(images, detector), detector, half), draft, {"stamp": unit.stamp})
        finally:  # of a run that was stopped, too
            add_hours(folder, fabric.global_rank, (time.monotonic() - began) / 3600)
        barrier(fabric)
        if fabric.is_global_zero:
            finish(cell, folder, place, fabric.world_size)
        barrier(fabric)


def checked_autoencoder(protocol: Protocol, report: dict[str, Any]) -> str:
    """The autoencoder of a latent model, "" for one of pixels; a UserError where it is not the one that the training had."""
    if protocol.data.representation == "pixels":
        return ""
    name = autoencoder_of(load_card(protocol.data.card))
    if autoencoder_identity(name)[1] != report["autoencoder"]:
        raise UserError(f"the autoencoder '{name}' is not the one used for training; set AUTOENCODER to that one")
    return name


def launched(run: Run) -> Fabric:
    """Fabric on the run's devices: one process each, started by it, by torchrun or by a cluster's scheduler."""
    quieten()
    # A process that is done early waits for the slowest, for longer than the half hour after which torch would give it up.
    strategy = DDPStrategy(timeout=timedelta(days=1)) if run.several else "auto"
    fabric = Fabric(accelerator=device(), devices=run.count, num_nodes=run.nodes, strategy=strategy, plugins=environment(run))
    fabric.launch()
    return fabric


def barrier(fabric: Fabric) -> None:
    """Waits for the other ranks; unlike NCCL's own barrier, which Python's handlers do not interrupt, it hears signals."""
    if fabric.world_size == 1:
        return
    devices = [fabric.device.index] if fabric.device.type == "cuda" else None
    work = torch.distributed.barrier(async_op=True, device_ids=devices)
    while not work.is_completed():
        time.sleep(0.02)
    work.wait()  # raises what went wrong


def add_hours(folder: Path, rank: int, hours: float) -> None:
    """Adds to the device-hours that this rank has spent on the cell over all runs."""
    path = folder / f"hours-{rank}.json"
    before = _hours(path) if path.is_file() else 0.0
    write_json(path, before + hours)


def note_hardware(folder: Path, rank: int, precision: Precision) -> None:
    """Adds what this rank samples on to what its images were made on: features may be made anew elsewhere, images stay."""
    path = folder / f"hardware-{rank}.json"
    before, own = (read_json(path) if path.is_file() else []), this_machine(precision)
    if own not in before:
        write_json(path, [*before, own])


def this_machine(precision: Precision) -> dict[str, str]:
    return {"device": device(), "name": machine(), "precision": effective(precision)}


def made_on(folder: Path, devices: int, precision: Precision) -> dict[str, Any]:
    """What all images of a cell were made on, as its record says it; a precision where it is one."""
    found = [item for path in sorted(folder.glob("hardware-*.json")) for item in read_json(path)] or [this_machine(precision)]
    names, precisions = (list(dict.fromkeys(item[key] for item in found)) for key in ("name", "precision"))
    hardware = {"device": found[-1]["device"], "name": " and ".join(names), "count": devices}
    return hardware | ({"precision": precisions[0]} if len(precisions) == 1 else {})


def _hours(path: Path) -> float:
    value = read_json(path)
    if not isinstance(value, float | int):
        raise UserError(f"{path} does not contain a number of hours: it was edited; remove it")
    return value


def finish(cell: Cell, folder: Path, place: Path, devices: int) -> None:
    """Checks that every batch is there, writes the grid, and notes that the cell is complete, and what it was made on."""
    cut = units(cell, folder).units
    missing = [k for k, unit in enumerate(cut) if not is_done(unit_file(place, k), unit)]
    if missing:
        raise UserError(f"{folder} lacks batches {listed(missing)}: another process did not finish; run the command again")
    hours = sum(_hours(path) for path in folder.glob("hours-*.json"))
    images: list[np.ndarray] = []
    for unit in cut:
        images.extend(unit.read())
        if len(images) >= min(GRID_IMAGES, cell.protocol.sample.count):
            break
    save_grid(images[:GRID_IMAGES], folder / GRID)
    config = cell.protocol.sample
    about = {"count": config.count, "size": list(size_hw(cell.test)), "hours": hours}
    write_json(folder / DONE, about | {"hardware": made_on(folder, devices, config.precision)})


def save_grid(images: list[np.ndarray], path: Path) -> None:
    """A sheet of images as PNG."""
    with atomic(path) as draft:
        sheet(images).save(draft, format="PNG", optimize=True)


def built(cell: Cell, run: Run) -> Method:
    """The method of a cell with its trained weights, ready to predict."""
    training, _ = trained(cell.training, run)
    method = registry.build(cell.method, cell.protocol, cell.train, cell.seed)
    report = load_weights(method, training)
    checked_autoencoder(cell.protocol, report)
    return method.eval()
