"""The stage graph: which trainings and cells a contest needs, which are missing, and running them here.

Stages meet only in files, so every one of them is skipped where its output is whole, and continues where it was interrupted.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import progress, registry
from benchmark.board import generate
from benchmark.data.card import load_card
from benchmark.evaluate import detectors
from benchmark.evaluate import score as scoring
from benchmark.evaluate.reference import Scenes, make, open_source
from benchmark.evaluate.samples import open_images
from benchmark.files import ROOT, Stopped, UserError, atomic, digest, read_json, write_json
from benchmark.identity import Cell, code_key
from benchmark.protocol import Protocol, size_hw
from benchmark.results import record
from benchmark.run import sample as sampling
from benchmark.run.loss import cell_loss, heldout_images
from benchmark.run.sample import DONE, GRID_GAP
from benchmark.run.train import REPORT, find_source, fingerprint, is_whole, training_folder
from benchmark.run.train import train as fit

if TYPE_CHECKING:
    from benchmark.evaluate.detectors import Detector
    from benchmark.evaluate.reference import Reference
    from benchmark.run.train import Run

BOARDS = ROOT / "leaderboards"
KEPT_ROWS = 2  # of a grid of samples, beside the records
COMPARED = ("fid", "is", "loss")  # scores whose replicates are kept, for comparisons in pairs; the others keep their interval


def cells_of(protocol: Protocol, methods: Sequence[str], seed: int) -> list[Cell]:
    """Every cell of the methods, in the order of the protocol."""
    return [Cell(method, train, test, seed) for method in methods for train, test in protocol.pairs()]


def contestants(protocol: Protocol) -> list[str]:
    """The methods that a sweep of the protocol runs."""
    return [registry.check(name) for name in protocol.methods] or registry.names()


def records_folder(protocol: Protocol, run: Run) -> Path:
    """Where records go: into leaderboards/, or beside the run for custom rules and contests that are not ranked."""
    if protocol.custom or not protocol.ranked:
        return run.out / "records" / protocol.hash
    return BOARDS / "records"


def trained(protocol: Protocol, method: str, size: str, seed: int, run: Run) -> tuple[Path, str]:
    """(folder of the finished training whose weights a method uses, hash of its data)."""

    name = registry.trained_name(method)
    source = find_source(protocol, name, size, run, verbose=False)
    folder = training_folder(name, size, seed, fingerprint(protocol, name, size, seed, source.hash), run)
    if not is_whole(folder):
        raise UserError(f"{name} is not trained at {size} with seed {seed}; run `python -m benchmark train` first")
    return folder, source.hash


def sample(protocol: Protocol, cell: Cell, run: Run) -> Path:
    """Draws a cell's images from its finished training."""
    training, _ = trained(protocol, cell.method, cell.train, cell.seed, run)
    return sampling.sample(protocol, cell.method, cell.train, cell.test, cell.seed, training, run)


def reference(protocol: Protocol, test: str, detector: Detector, run: Run) -> Reference:
    """The reference statistics of a test size, cached."""

    card = load_card(protocol.data.card)
    if card.kind == "shapes":
        source = Scenes()
    elif run.data:
        source = open_source(run.data)
    else:
        raise UserError(f"the reference of {card.name} is made from its images: give their folder as DATA")
    count, nearest = protocol.score.reference, min(protocol.score.nearest, protocol.score.reference)
    with progress.stage(f"reference {card.name} {test}", count, "image") as stage:
        return make(
            source, size_hw(test), detector, count, nearest, run.out / "references", report=lambda done, _: stage.set(done)
        )


def score(protocol: Protocol, cell: Cell, folder: Path, run: Run) -> dict[str, Any]:
    """Scores a cell's images and writes its record, or finds it scored.

    Returns:
        the record.
    """
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = detectors.load(protocol.score.detector, device=device)
    code = code_key("benchmark.evaluate.score", "benchmark.evaluate.reference", "benchmark.evaluate.denoising")
    mark = digest([protocol.hash, detector.hash, code, run.data])
    done = folder / f"record-{mark}.json"
    destination = records_folder(protocol, run)
    if done.is_file():
        value = read_json(done)
        record.write(value, destination)
        if value["scores"] is None:
            raise UserError(f"{cell} failed when it was scored; remove {done} to score it again")
        progress.say(f"score {cell}: whole already, skipped")
        return value
    began = time.monotonic()
    real = reference(protocol, cell.test, detector, run)
    images = open_images(folder)
    features_at = scoring.features_folder(folder, detector)
    with progress.stage(f"score {cell}", protocol.sample.count, "image") as stage:
        extraction = scoring.extract(images, detector, features_at, report=lambda done, _: stage.set(done))
    # Recall takes all samples, as the field's evaluator does; `nearest` is how many real images are kept.
    options = scoring.Options(splits=protocol.splits, nearest=protocol.score.nearest, all_samples=True)
    labels = np.arange(protocol.sample.count) % protocol.core.classes
    try:
        scores = scoring.score(scoring.Features(features_at, images), real, labels, options, device)
        training, _ = trained(protocol, cell.method, cell.train, cell.seed, run)
        scores["loss"] = cell_loss(protocol, cell, training, heldout_images(protocol, cell.test, run, device))
        failure = None
    except UserError as error:  # the cell failed: its record says so, and holds no numbers
        scores, failure = None, error
    for name, entry in (scores or {}).items():
        if name not in COMPARED:
            entry.pop("replicates", None)
    value = build_record(protocol, cell, folder, scores, scoring.uncertainty(options), detector, real,
                         (time.monotonic() - began) / 3600, run)  # fmt: skip
    write_json(done, value)
    path = record.write(value, destination)
    share = extraction.seconds / max(extraction.seconds + 3600 * value["hours"]["sample"], 1e-9)
    progress.say(f"record {path} (detector: {extraction}, {share:.0%} of the cell's time)")
    if failure is not None:
        raise failure
    return value


def build_record(
    protocol: Protocol,
    cell: Cell,
    folder: Path,
    scores: dict[str, Any] | None,
    uncertainty: dict[str, Any],
    detector: Detector,
    real: Reference,
    hours: float,
    run: Run,
) -> dict[str, Any]:
    """The record of a scored cell."""
    import dataclasses

    import torch

    cls = registry.load(cell.method)
    training, data_hash = trained(protocol, cell.method, cell.train, cell.seed, run)
    report = read_json(training / REPORT)
    cuda = torch.cuda.is_available()
    return record.build(
        protocol,
        method={
            "name": cell.method,
            "title": cls.title,
            "trained_as": registry.trained_name(cell.method),
            "options": dataclasses.asdict(cls.make_options(protocol.options.get(cell.method, {}))),
            "note": cls.note,
        },
        train=cell.train,
        test=cell.test,
        seed=cell.seed,
        training={key: report[key] for key in ("fingerprint", "steps", "parameters", "hours", "loss")},
        data_hash=data_hash,
        reference={"hash": real.hash, "count": real.count},
        detector={"name": detector.name, "hash": detector.hash},
        scores=scores,
        uncertainty=uncertainty,
        hours={"sample": read_json(folder / DONE)["hours"], "score": hours},
        hardware={
            "device": "cuda" if cuda else "cpu",
            "name": torch.cuda.get_device_name() if cuda else processor(),
            "count": run.count * run.nodes,
        },
    )


def processor() -> str:
    """The processor's name, as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def bench(protocol: Protocol, methods: Sequence[str], seed: int, run: Run) -> list[tuple[Cell, str]]:
    """All stages for the methods: shards, trainings, samples, scores, records.

    A failure is kept and the other methods go on.

    Returns:
        (cell, reason) of every cell that failed.
    """
    failures: list[tuple[Cell, str]] = []
    for method in methods:
        cells = cells_of(protocol, [method], seed)
        for size in protocol.cells:
            try:
                stage("train", protocol, method, seed, run, train=size)
            except UserError as error:
                failures += [(cell, str(error)) for cell in cells if cell.train == size]
                progress.say(f"failed: train {method} {size}: {error}")
        lost = {cell for cell, _ in failures}
        for cell in cells:
            if cell in lost:
                continue
            try:
                folder = stage("sample", protocol, method, seed, run, cell=cell)
                score(protocol, cell, folder, run)
                keep_grid(protocol, cell, folder, run)
            except UserError as error:
                failures.append((cell, str(error)))
                progress.say(f"failed: {cell}: {error}")
    return failures


def stage(verb: str, protocol: Protocol, method: str, seed: int, run: Run, train: str = "", cell: Cell | None = None) -> Path:
    """One stage, here; with several devices in processes of its own, which its launcher multiplies."""
    import torch

    if run.several and "LOCAL_RANK" not in os.environ:
        size = ["--train", train or cell.train] + (["--test", cell.test] if cell else [])
        where = ["--seed", str(seed), "--out", str(run.out), "--devices", run.devices, "--nodes", str(run.nodes)]
        command = [sys.executable, "-m", "benchmark", verb, method, *size, *where, *(["--data", run.data] if run.data else [])]
        code = follow([*command, "--protocol", protocol.source, *protocol.overrides])
        if code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
            raise Stopped(f"stopped while it ran {verb} {method}; the same command continues", code if code > 0 else 128 - code)
        if code:
            raise UserError(f"{verb} {method} on {run.devices} devices ended with exit code {code}: its message stands above")
    try:
        return fit(protocol, method, train, seed, run) if verb == "train" else sample(protocol, cell, run)
    except torch.OutOfMemoryError as error:
        advice = "more devices share a training's batch" if verb == "train" else "sample.batch is part of the rules"
        raise UserError(f"{verb} {method}: the device's memory is full ({str(error).splitlines()[0]}); {advice}") from None


def follow(command: list[str]) -> int:
    """Runs a command in a process group of its own and returns its exit code.

    Ctrl-C and the like are handed to the whole group, once to every process, and what these then save is waited for.
    """
    child: subprocess.Popen | None = None
    early: list[int] = []  # signals that come before there is somebody to hand them to

    def hand_on(number: int, frame: Any) -> None:
        if child is None:
            early.append(number)
        else:
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        child = subprocess.Popen(command, process_group=0)
        for number in early:
            os.killpg(child.pid, number)
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(protocol: Protocol, run: Run) -> list[Path]:
    """Copies the grids of a ranked contest beside its records and regenerates the leaderboards; returns what was written."""

    if records_folder(protocol, run) != BOARDS / "records":
        return []
    return generate.generate()


def keep_grid(protocol: Protocol, cell: Cell, folder: Path, run: Run) -> None:
    """Puts the first rows of a ranked cell's grid beside the records, for the page: in 256 colours, an eighth of the bytes."""
    from PIL import Image

    if records_folder(protocol, run) == BOARDS / "records":
        target = BOARDS / "grids" / protocol.name / cell.method / f"{cell.train}-{cell.test}-s{cell.seed}.png"
        with Image.open(folder / "grid.png") as sheet, atomic(target) as draft:
            rows = sheet.crop((0, 0, sheet.width, KEPT_ROWS * (size_hw(cell.test)[0] + GRID_GAP) - GRID_GAP))
            few = rows.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(draft, format="PNG", optimize=True)
