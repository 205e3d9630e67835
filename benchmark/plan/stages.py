"""The stages of a benchmark: the work of each, the key of its files, what remains, and how to run it.

    shards -> latents -> training -> samples -> record -> board
                       reference  ----------->

Stages meet only in files. `plan` lists them, `local` runs them here, `slurm` submits them; nobody else works out what
a file depends on. No torch is needed until one runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmark import lazy, registry, revision
from benchmark.files import below, digest, read_fields
from benchmark.identity import Cell, Training, cells_of, features_folder, reference_ending, reference_key, scoring_code
from benchmark.plan import cost
from benchmark.plan.cost import Cost
from benchmark.plan.dataset import DataSet
from benchmark.plan.layout import CHECKPOINTS, CHUNKS, DONE, KEPT_IMAGES, is_trained, saved, step_of
from benchmark.plan.place import Run
from benchmark.protocol import Protocol
from benchmark.results import record

training, to_latents, sampling, scoring = (lazy.Module(f"benchmark.run.{n}") for n in ("train", "latents", "sample", "score"))

COMPLETE, MISSING = "complete", "missing"


@dataclass
class Context:
    """A protocol on this machine; `data` is found anew after shards or latents have been written."""

    protocol: Protocol
    run: Run

    @cached_property
    def data(self) -> DataSet:
        return DataSet(self.protocol, self.run)

    def changed(self) -> None:
        self.__dict__.pop("data", None)


@dataclass(kw_only=True)
class Stage:
    """One piece of work whose result is files.

    Attributes:
        needs: the stages that must be complete before it can run.
        after: those that come first where both are to run, since it then has less to do; it can do without.
    """

    context: Context
    needs: list[Stage] = field(default_factory=list)
    after: list[Stage] = field(default_factory=list)
    kind = ""
    distributed = False  # whether it runs in one process for each device

    @property
    def protocol(self) -> Protocol:
        return self.context.protocol

    @property
    def title(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.kind} {self.title}"

    def key(self) -> str | None:
        """The hash of all that its files depend on; None while that is not known."""
        raise NotImplementedError

    def state(self) -> str:
        """COMPLETE, MISSING, or how far an interrupted run has come."""
        raise NotImplementedError

    def is_complete(self) -> bool:
        return self.state() == COMPLETE

    def cost(self) -> Cost:
        """What is left of it."""
        return Cost() if self.is_complete() else self.full_cost() * (1 - self.done())

    def full_cost(self) -> Cost:
        """What all of it costs."""
        return Cost()

    def done(self) -> float:
        """The share of it that is done."""
        return float(self.is_complete())

    def run(self) -> None:
        """Does it, or what is left of it."""
        raise NotImplementedError

    def verb(self) -> list[str]:
        """The words after `python -m benchmark` that run it, without those that say where."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """All words after `python -m benchmark` that run it in another process."""
        run, protocol = self.context.run, self.protocol
        words = [*self.verb(), *protocol.overrides, "--protocol", protocol.source, *run.where]
        if self.kind == "train":
            words += ["--compile"] * run.compile + ["--deterministic"] * run.deterministic
        if self.distributed:
            words += ["--devices", run.devices] + (["--nodes", str(run.nodes)] if self.kind in ("train", "sample") else [])
        return words + (["--keep"] if run.keep and self.kind in ("train", "sample") else [])


class Shards(Stage):
    kind = "shards"

    @property
    def title(self) -> str:
        return f"{self.protocol.data.card}, {self.context.data.count:,} pictures"

    def key(self) -> str | None:
        return self.context.data.fingerprint

    def state(self) -> str:
        return MISSING if self.context.data.images is None else COMPLETE

    def full_cost(self) -> Cost:
        data = self.context.data
        return Cost(bytes=data.count * data.picture_bytes)

    def run(self) -> None:
        training.prepared(self.protocol, self.context.run)
        self.context.changed()

    def verb(self) -> list[str]:
        return ["shards"]


@dataclass(kw_only=True)
class Latents(Stage):
    size: str
    kind = "latents"
    distributed = True

    @property
    def title(self) -> str:
        return f"{self.protocol.data.card} at {self.size}, both flips"

    def key(self) -> str | None:
        found = self.context.data.latents.get(self.size)
        return Path(found[-1]).name.rpartition("-")[2] if found else None

    def state(self) -> str:
        return COMPLETE if self.size in self.context.data.latents else MISSING

    def full_cost(self) -> Cost:
        return cost.latents(self.protocol, self.size, self.context.data.count)

    def run(self) -> None:
        self.context.changed()  # they may have been written meanwhile
        if not self.is_complete():
            to_latents.make_latents(self.protocol, self.context.run, [self.size])
            self.context.changed()

    def verb(self) -> list[str]:
        return ["latents", "--train", self.size]


@dataclass(kw_only=True)
class Train(Stage):
    training: Training
    kind = "train"
    distributed = True

    @property
    def title(self) -> str:
        return f"{self.training.method} at {self.training.size}"

    def key(self) -> str | None:
        data = self.context.data.seen_by(self.training)
        return None if data is None else self.training.key(data)

    @property
    def folder(self) -> Path | None:
        data = self.context.data.seen_by(self.training)
        return None if data is None else self.training.folder(self.context.run.out, data)

    def steps(self) -> int:
        """The step of the newest checkpoint."""
        found = saved(self.folder / CHECKPOINTS) if self.folder else []
        return step_of(found[0]) if found else 0

    def state(self) -> str:
        if self.folder and is_trained(self.folder):
            return COMPLETE
        steps = self.steps()
        return f"step {steps:,} of {self.protocol.train.steps:,}" if steps else MISSING

    def done(self) -> float:
        return 1.0 if self.is_complete() else self.steps() / self.protocol.train.steps

    def autoencoder(self) -> Cost:
        """Of pictures that are augmented before the autoencoder sees them: once for every step that they are trained on."""
        if self.protocol.data.representation != "latents" or not self.context.data.augments(self.training.method):
            return Cost()
        return cost.autoencoder(self.training.size, float(self.protocol.train.batch) * self.protocol.train.steps)

    def full_cost(self) -> Cost:
        return cost.training(self.protocol, self.training.size, self.context.run.keep) + self.autoencoder()

    def run(self) -> None:
        training.train(self.training, self.context.run)

    def verb(self) -> list[str]:
        return ["train", self.training.method, "--train", self.training.size, "--seed", str(self.training.seed)]


@dataclass(kw_only=True)
class Reference(Stage):
    test: str
    kind = "reference"

    @property
    def title(self) -> str:
        return f"{self.protocol.score.reference:,} of {self.protocol.data.card} at {self.test}"

    def key(self) -> str | None:
        score, weights, data = self.protocol.score, registry.detector_weights(self.protocol.score.detector), self.context.data
        if weights is None or (data.card.kind != "shapes" and data.pictures is None):
            return None
        return reference_key(*data.real(), self.test, score.detector, weights, score.reference, score.kept)

    def state(self) -> str:
        key, folder = self.key(), self.context.run.out / "references"
        found = key and any(folder.glob(f"*{reference_ending(key, self.protocol.score.detector)}"))
        return COMPLETE if found else MISSING

    def full_cost(self) -> Cost:
        return cost.reference(self.protocol)

    def run(self) -> None:
        scoring.reference(self.protocol, self.test, self.context)

    def verb(self) -> list[str]:
        score = self.protocol.score
        data = self.context.data
        name, _ = data.real()
        source = name if data.card.kind == "shapes" else str(data.pictures)  # of the prepared pictures: what the key names
        numbers = ["--count", str(score.reference), "--nearest", str(score.kept)]
        return ["reference", source, self.test, *numbers, "--detector", score.detector]

    def command(self) -> list[str]:
        return [*self.verb(), "--out", str(self.context.run.out)]


@dataclass(kw_only=True)
class Sample(Stage):
    """A cell's images, as features and the first of them as they are.

    Attributes:
        base: the first stage of a cell with the same checkpoint and sizes, if that is not this one.
    """

    cell: Cell
    train: Train
    base: Sample | None = None
    kind = "sample"
    distributed = True

    @property
    def title(self) -> str:
        return f"{self.cell.method} {self.cell.train} -> {self.cell.test}"

    @property
    def shared(self) -> bool:
        """Whether the images are likely those of `base`; for sure that is only known when the encodings are compared."""
        grids = zip(self.protocol.grid(self.cell.test), self.protocol.grid(self.cell.train), strict=True)
        return self.base is not None and all(test <= trained for test, trained in grids)

    def key(self) -> str | None:
        training = self.train.key()
        return None if training is None else self.cell.key(training)

    @property
    def folder(self) -> Path | None:
        training = self.train.key()
        return None if training is None else self.cell.folder(self.context.run.out, training)

    @property
    def images(self) -> Path:
        """The folder with the images of a complete cell: its own, or that of the method whose encodings are the same."""
        assert self.folder is not None, "the images of a complete cell have a folder"
        return images_folder(self.folder)

    def made(self) -> int:
        """Images whose features are there, but for those of a batch that is not complete."""
        config, place = self.protocol.sample, features_of(self.folder, self.protocol) if self.folder else None
        return min(len(list(place.glob("unit-*.safetensors"))) * config.batch, config.count) if place else 0

    def state(self) -> str:
        if self.folder and is_sampled(self.folder, self.protocol, self.context.run.keep):
            return COMPLETE
        made = self.made()
        return f"{made:,} of {self.protocol.sample.count:,} images" if made else MISSING

    def done(self) -> float:
        return 1.0 if self.is_complete() else self.made() / self.protocol.sample.count

    def full_cost(self) -> Cost:
        if self.shared:
            return Cost()
        return cost.sampling(self.protocol, self.cell.test, kept_images(self.protocol, self.context.run.keep))

    def run(self) -> None:
        sampling.sample(self.cell, self.context.run)

    def verb(self) -> list[str]:
        cell = self.cell
        return ["sample", cell.method, "--train", cell.train, "--test", cell.test, "--seed", str(cell.seed)]


@dataclass(kw_only=True)
class Score(Stage):
    """The record of a cell."""

    sample: Sample
    kind = "score"

    @property
    def cell(self) -> Cell:
        return self.sample.cell

    @property
    def title(self) -> str:
        return self.sample.title

    def key(self) -> str | None:
        weights = registry.detector_weights(self.protocol.score.detector)
        if weights is None:
            return None
        code = scoring_code(self.protocol.score.detector)
        return digest([self.protocol.hash, weights, code, self.context.data.named, revision.current(self.cell.method)])

    @property
    def file(self) -> Path | None:
        """The record as it is kept beside the samples."""
        return self.sample.folder / f"record-{self.key()}.json" if self.sample.folder and self.key() else None

    def state(self) -> str:
        if not (self.file and self.file.is_file()):
            return MISSING
        place = record.place(self.protocol.name, self.cell.method, self.cell.train, self.cell.test, self.cell.seed)
        written = records_folder(self.protocol, self.context.run) / place
        same = written.is_file() and written.read_bytes() == self.file.read_bytes()
        return COMPLETE if same and not self.is_outdated() else "no record"  # also where the record is an older one

    def is_outdated(self) -> bool:
        """Whether the record, which is there, was made by code that was not committed, or unknown, and now is."""
        assert self.file is not None
        code = read_fields(self.file, "code")["code"]
        return (code["dirty"] or code["commit"] is None) and record.is_committed()

    def run(self) -> None:
        scoring.score(self)

    def verb(self) -> list[str]:
        return ["score", *self.sample.verb()[1:]]


def images_folder(folder: Path) -> Path:
    """Where the images of a complete cell are: in its own folder, or in that of the cell whose encodings are the same."""
    same = read_fields(folder / DONE, "count").get("same_as")
    return below(folder.parent, str(same)) if same else folder


def features_of(folder: Path, protocol: Protocol) -> Path | None:
    """The folder of a cell's features; None while the detector's weights are not there."""
    weights = registry.detector_weights(protocol.score.detector)
    return features_folder(folder, protocol.score.detector, weights) if weights else None


def kept_images(protocol: Protocol, keep: bool) -> int:
    """How many images of a cell stay on disk, but for the rest of their batch."""
    return protocol.sample.count if keep else min(KEPT_IMAGES, protocol.sample.count)


def is_sampled(folder: Path, protocol: Protocol, keep: bool) -> bool:
    """Whether a cell is done: with features of the present detector for every image, and the images that are to be kept."""
    if not (folder / DONE).is_file():
        return False
    folder, config = images_folder(folder), protocol.sample
    place = features_of(folder, protocol)
    if place is None:
        return False
    batches = math.ceil(config.count / config.batch)
    chunks = math.ceil(kept_images(protocol, keep) / config.batch)
    there = len(list(place.glob("unit-*.safetensors"))), len(list((folder / CHUNKS).glob("chunk-*.tar")))
    return (folder / DONE).is_file() and there[0] >= batches and there[1] >= chunks


def records_folder(protocol: Protocol, run: Run) -> Path:
    """Where a run writes its records: beside itself. Those of leaderboards/ are copied there by `submit` alone."""
    return run.out / "records" / protocol.hash


def graph(protocol: Protocol, methods: Sequence[str], seed: int, run: Run) -> list[Stage]:
    """Every stage of the protocol for some methods, each after those that it needs: references, trainings, then cell by cell.

    Methods with a training of their own come before those that use it. References come before trainings: what they lack, such
    as pictures or the weights of a detector, shows at once and not after days.
    """
    context = Context(protocol, run)
    context.data.check()
    latent = protocol.data.representation == "latents"
    augmenting = {name for name in methods if context.data.augments(registry.trained_name(name))}
    shards = Shards(context=context)
    latents = (
        {size: Latents(context=context, needs=[shards], size=size) for size in protocol.cells}
        if latent and set(methods) - augmenting
        else {}
    )
    trainings: dict[Training, Train] = {}
    references: dict[str, Reference] = {}
    samples: dict[Cell, Sample] = {}
    cells: list[Stage] = []
    ordered = sorted(methods, key=lambda name: registry.trained_name(name) != name)  # after those whose checkpoints they use
    for cell in cells_of(protocol, ordered, seed):
        training = cell.training
        if training not in trainings:
            wanted = shards if cell.method in augmenting or not latents else latents[cell.train]
            trainings[training] = Train(context=context, needs=[wanted], training=training)
        if cell.test not in references:
            references[cell.test] = Reference(context=context, needs=[shards], test=cell.test)
        same = Cell(protocol, training.method, cell.train, cell.test, seed)
        base = samples.get(same)
        train = trainings[training]
        made = Sample(context=context, needs=[train], cell=cell, train=train, base=base)
        made.after = [base] if made.shared and base else []
        cells += [made, Score(context=context, needs=[made, references[cell.test]], sample=made)]
        samples.setdefault(same, made)
    later: list[Stage] = [*latents.values(), *references.values(), *trainings.values(), *cells]
    # Who has latents and references of everything needs no pictures.
    pictures = not latents or augmenting or not all(stage.is_complete() for stage in (*latents.values(), *references.values()))
    return [shards, *later] if pictures else later
