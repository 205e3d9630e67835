"""Sampling, one stage: weights in, images out as chunks of one forward batch each; every image from its own seed.

A chunk is whole or absent, so an interrupted cell continues, and any number of processes shares one: process r of n draws the
missing chunks r, r + n, ... The forward batch is the protocol's, so the same images come out however many processes there are.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from benchmark import progress, registry
from benchmark.data.card import load_card
from benchmark.data.latents import autoencoder_identity, autoencoder_of, decoder, to_uint8
from benchmark.files import UserError, atomic, below, digest, listed, read_json, write_array, write_json
from benchmark.identity import code_key
from benchmark.model.precision import autocast
from benchmark.protocol import Protocol, size_hw
from benchmark.run.train import REPORT, WEIGHTS, Run, load_weights, quieten

CODE = ("benchmark.model.method", "benchmark.model.precision", "benchmark.data.latents")  # what images run through
CHUNKS, GRID, DONE = "chunks", "grid.png", "samples.json"
GRID_IMAGES, GRID_GAP = 32, 2  # images, and pixels between them


def fingerprint(protocol: Protocol, name: str, train: str, test: str, seed: int, training: str) -> str:
    """A hash of everything the images of a cell depend on; `training` is the fingerprint of the weights."""
    return digest(
        {
            "training": training,
            "method": name,
            "options": dataclasses.asdict(registry.load(name).make_options(protocol.options.get(name, {}))),
            "sizes": [train, test],
            "largest_grid": protocol.largest_grid(train),
            "rules": protocol.sampling(),
            "seed": seed,
            "code": code_key(*CODE, f"methods.{name}"),
        }
    )


def cell_folder(protocol: Protocol, name: str, train: str, test: str, seed: int, training: str, run: Run) -> Path:
    """Where a cell's files lie."""
    mark = fingerprint(protocol, name, train, test, seed, training)
    return below(run.out, "cells", protocol.name, f"{name}-{train}-{test}-s{seed}-{mark}")


def chunk_path(folder: Path, number: int) -> Path:
    return folder / CHUNKS / f"chunk-{number:05}.npy"


def is_whole(folder: Path) -> bool:
    """Whether a cell's images are all there."""
    return (folder / DONE).is_file()


def sample(protocol: Protocol, name: str, train: str, test: str, seed: int, training: Path, run: Run) -> Path:
    """Draws the images of a cell, or finds them drawn.

    Args:
        training: the folder of the weights.

    Returns:
        the cell's folder: chunks/chunk-00000.npy ... (uint8 [n, H, W, 3]), grid.png, samples.json.
    """
    if not (training / WEIGHTS).is_file():
        raise UserError(f"{training} has no {WEIGHTS}; run `python -m benchmark train {name}` first")
    report = read_json(training / REPORT)
    folder = cell_folder(protocol, name, train, test, seed, report["fingerprint"], run)
    title = f"sample {name} {train} -> {test}"
    config = protocol.sample
    numbers = [number for number in range(-(-config.count // config.batch)) if not chunk_path(folder, number).is_file()]
    if is_whole(folder) and not numbers:
        progress.say(f"{title}: whole already, skipped ({folder})")
        return folder
    fabric = launched(run)
    if protocol.data.representation == "latents":
        _check_autoencoder(protocol, report)
    method = registry.build(name, protocol, train, seed)
    load_weights(method, training, report["fingerprint"])
    method = method.to(fabric.device).eval()
    decode = decoder(protocol, fabric.device)
    own = numbers[fabric.global_rank :: fabric.world_size]
    began = time.monotonic()
    with (
        progress.stage(title, len(own) * config.steps, "step") as stage,
        torch.inference_mode(),
        autocast(config.precision, fabric.device),
    ):
        for number in own:
            first = number * config.batch
            indices = range(first, min(first + config.batch, config.count))
            images = to_uint8(decode(method.generate(test, seed, indices, stage.advance)))
            write_array(chunk_path(folder, number), images)
    add_hours(folder, fabric.global_rank, (time.monotonic() - began) / 3600)
    fabric.barrier()
    if fabric.is_global_zero:
        finish(folder, protocol, test)
    fabric.barrier()
    return folder


def _check_autoencoder(protocol: Protocol, report: dict[str, Any]) -> None:
    name = autoencoder_of(load_card(protocol.data.card))
    if autoencoder_identity(name)[1] != report["autoencoder"]:
        raise UserError(f"the autoencoder '{name}' is not the one whose latents were trained on; AUTOENCODER names another")


def launched(run: Run) -> Fabric:
    """Fabric on the run's devices: one process each, started by it, by torchrun or by a cluster's scheduler."""
    quieten()
    fabric = Fabric(accelerator="auto", devices=run.count, num_nodes=run.nodes, strategy="ddp" if run.several else "auto")
    fabric.launch()
    return fabric


def add_hours(folder: Path, rank: int, hours: float) -> None:
    """Adds to the device-hours that this rank has spent on the cell over all runs."""
    path = folder / f"hours-{rank}.json"
    before = read_json(path) if path.is_file() else 0.0
    write_json(path, before + hours)


def finish(folder: Path, protocol: Protocol, test: str) -> None:
    """Checks that every chunk is there, draws the grid, and marks the cell as whole."""
    config = protocol.sample
    chunks = -(-config.count // config.batch)
    missing = [number for number in range(chunks) if not chunk_path(folder, number).is_file()]
    if missing:
        raise UserError(f"{folder} lacks chunks {listed(missing)}: another process did not finish; run the command again")
    hours = sum(read_json(path) for path in folder.glob("hours-*.json"))
    images: list[np.ndarray] = []
    for number in range(chunks):
        images.extend(np.load(chunk_path(folder, number)))
        if len(images) >= GRID_IMAGES:
            break
    save_grid(images[:GRID_IMAGES], folder / GRID)
    write_json(folder / DONE, {"count": config.count, "size": list(size_hw(test)), "hours": hours})


def save_grid(images: list[np.ndarray], path: Path, columns: int = 8, gap: int = GRID_GAP) -> None:
    """Images uint8 [H, W, 3] in rows of `columns`, as PNG. With 8 classes a column is a class."""
    from PIL import Image

    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    with atomic(path) as draft:
        Image.fromarray(sheet).save(draft, format="PNG", optimize=True)
