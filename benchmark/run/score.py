"""The scoring stage: from features and reference statistics to a record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark import progress, streams
from benchmark.evaluate import detectors
from benchmark.evaluate import score as scoring
from benchmark.evaluate.detectors import Detector
from benchmark.evaluate.reference import Reference, Scenes, make, open_source
from benchmark.files import UserError, read_fields, read_json, sweep, write_text
from benchmark.identity import Cell, features_folder
from benchmark.plan import needs
from benchmark.plan.layout import DONE, REPORT
from benchmark.plan.place import Run, device
from benchmark.plan.stages import Context, Score, records_folder
from benchmark.protocol import Protocol, size_hw
from benchmark.results import record
from benchmark.run.loss import cell_loss, heldout_images
from benchmark.run.sample import described, units
from benchmark.run.train import pictures, trained

TRAINED = ("fingerprint", "steps", "parameters", "hours", "loss")  # what a record says of its training
ADDED = ("lowest", "machine", "precision", "compiled")  # the same, since 0.2.0: a training may be older
COMPARED = ("fid", "is", "loss")  # scores whose replicates are kept, for comparisons in pairs; the others keep their interval


def reference(protocol: Protocol, test: str, context: Context, detector: Detector | None = None) -> Reference:
    """The reference statistics of a test size, cached."""
    run, card = context.run, context.data.card
    if card.kind == "shapes":
        source = Scenes()
    else:
        context.data.real()  # fails if the location of the images was not given
        source = open_source(pictures(protocol, run))
    needs.check_memory(needs.reference(protocol), f"reference {card.name} {test}")
    sweep(run.out / "references")  # of a killed run
    detector = detector or detectors.load(protocol.score.detector, device=device())
    count, nearest = protocol.score.reference, protocol.score.kept
    with progress.stage(f"reference {card.name} {test}", count, "image") as stage:
        folder = run.out / "references"
        return make(source, size_hw(test), detector, count, nearest, folder, report=lambda done, _: stage.set(done))


def score(stage: Score) -> dict[str, Any]:
    """Scores a cell and writes its record, or finds it scored.

    Returns:
        the record.
    """
    cell, protocol, run = stage.cell, stage.protocol, stage.context.run
    destination = records_folder(protocol, run)
    sweep(destination, everywhere=True)
    if stage.sample.folder:
        sweep(stage.sample.folder, everywhere=True)
    if stage.file and stage.file.is_file() and not stage.is_outdated():
        value = read_json(stage.file)
        record.write(value, destination)
        if value["scores"] is None:
            raise UserError(f"scoring {cell} failed before; remove {stage.file} to score it again")
        progress.say(f"score {cell}: already complete, skipped")
        return value
    began = time.monotonic()
    detector = detectors.load(protocol.score.detector, device=device())
    real = reference(protocol, cell.test, stage.context, detector)
    scores, failure = measured(cell, stage.sample.images, detector, real)
    if scores is not None:
        scores["loss"] = cell_loss(cell, run, heldout_images(protocol, cell.test, run, device()))
    for name, entry in (scores or {}).items():
        if name not in COMPARED:
            entry.pop("replicates", None)
    value = build(cell, stage.sample.folder, scores, detector, real, (time.monotonic() - began) / 3600, run)
    write_text(stage.file, record.text_of(value))
    progress.say(f"score {cell}: record {record.write(value, destination)}")
    if failure is not None:
        raise failure
    return value


def measured(cell: Cell, folder: Path, detector: Detector, real: Reference) -> tuple[dict[str, Any] | None, UserError | None]:
    """A cell's scores, or why there are none: then its record says so, and holds no numbers."""
    config = cell.protocol.sample
    labels = streams.labels(config.labels, cell.seed, range(config.count), cell.protocol.core.classes)
    # Outside of what is caught: a lost file is no result.
    place = features_folder(folder, detector.name, detector.hash)
    features = scoring.Features(place, units(cell, folder), detector.head)
    try:
        return scoring.score(features, real, labels, scoring.options_of(cell.protocol), detector.device), None
    except UserError as error:
        return None, error


def build(
    cell: Cell, folder: Path, scores: dict[str, Any] | None, detector: Detector, real: Reference, hours: float, run: Run
) -> dict[str, Any]:
    """The record of a scored cell; its hardware is that of sampling, which is nearly all of the work."""
    training, data_hash = trained(cell.training, run)
    report, sampled = read_fields(training / REPORT, *TRAINED), read_fields(folder / DONE, "hours", "hardware")
    return record.build(
        cell.protocol,
        method=described(cell.protocol, cell.method),
        train=cell.train,
        test=cell.test,
        seed=cell.seed,
        training={key: report[key] for key in (*TRAINED, *ADDED) if key in report},
        data_hash=data_hash,
        reference={"hash": real.hash, "count": real.count},
        detector={"name": detector.name, "hash": detector.hash},
        scores=scores,
        uncertainty=scoring.uncertainty(scoring.options_of(cell.protocol)),
        hours={"sample": sampled["hours"], "score": hours},
        hardware=sampled["hardware"],
    )
