"""What a contest still needs, in which order, and what that will cost: operations, device-hours and disk, before anything runs.

Operations are counted as torch's flop counter counts them: two for a multiply-add of matrix products, convolutions and
attention; norms, activations and samplers are left out. A stage's hours are its operations over the device's peak for their
number format times an efficiency, both stated with the plan.

Legend: T tokens, D width, (h, w) token grid; y before x.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import registry, revision
from benchmark.data import writer
from benchmark.data.card import load_card
from benchmark.data.index import read_manifest
from benchmark.data.sources import source
from benchmark.files import UserError, read_json, unknown
from benchmark.identity import Cell
from benchmark.model.flops import OUTPUTS, Device, device, forward_flops, parameters, training_flops
from benchmark.protocol import Protocol, Sample, size_hw, size_name
from benchmark.results import record
from benchmark.run import local
from benchmark.run import train as training_stage
from benchmark.run.train import augments, find_source

if TYPE_CHECKING:
    import rich.console

    from benchmark.run.train import Run

# --- Operations ------------------------------------------------------------------------------------------------------

# Stable Diffusion's autoencoder (83,653,863 parameters): convolutions per pixel, and one attention of width 512 in the middle of
# either half over (height / 8) x (width / 8) places. Counted from diffusers' AutoencoderKL; a test counts again.
ENCODE_PIXEL, DECODE_PIXEL, MIDDLE = 4_128_642, 9_461_056, 512


@dataclass(frozen=True)
class Seen:
    """What a detector's look at one image costs: operations, and numbers kept. A test counts again."""

    flops: float
    numbers: int


DETECTORS = {
    "inception": Seen(11.43e9, 2048 + 2023 + 1008),  # at 299 x 299
    "dinov2": Seen(162.0e9, 1024),  # at 224 x 224
    "shapes": Seen(44.7e6, 64 + 128 + 8 + 1),
}


def evaluations(config: Sample) -> int:
    """Forwards of the core that one sampled image takes: Heun looks twice a step but the last, guidance doubles all."""
    steps = 2 * config.steps - 1 if config.solver == "heun" else config.steps
    return steps * (1 if config.guidance == 1 else 2)


def autoencoder_flops(pixel: float, height: int, width: int) -> float:
    """Operations of one half of Stable Diffusion's autoencoder on one image; `pixel` is ENCODE_PIXEL or DECODE_PIXEL."""
    return pixel * height * width + 4.0 * MIDDLE * (height // 8 * (width // 8)) ** 2


@dataclass(frozen=True)
class Work:
    """Operations by the number format that they run in."""

    bf16: float = 0.0
    tf32: float = 0.0  # the autoencoder's float32 convolutions, as torch runs them by default
    float32: float = 0.0  # detectors, and cores in float32

    def __add__(self, other: Work) -> Work:
        return Work(self.bf16 + other.bf16, self.tf32 + other.tf32, self.float32 + other.float32)

    def __mul__(self, factor: float) -> Work:
        return Work(self.bf16 * factor, self.tf32 * factor, self.float32 * factor)

    @property
    def total(self) -> float:
        return self.bf16 + self.tf32 + self.float32

    def hours(self, device: Device, efficiency: float) -> float:
        """Device-hours."""
        seconds = sum(getattr(self, name) / (getattr(device, name) * 1e12) for name in ("bf16", "tf32", "float32"))
        return seconds / efficiency / 3600


def training_work(rules: Protocol, train: str) -> Work:
    """The core's part of a training: forward and backward."""
    return Work(**{rules.train.precision: training_flops(rules, train) * rules.train.batch * rules.train.steps})


def encoding_work(rules: Protocol, train: str, images: float) -> Work:
    """Encoding pictures of the training size."""
    return Work(tf32=images * autoencoder_flops(ENCODE_PIXEL, *size_hw(train)))


def sampling_work(rules: Protocol, test: str) -> Work:
    """Drawing a cell: the sampler, and decoding latents."""
    flops = forward_flops(rules.core, OUTPUTS[rules.objective.name], rules.grid(test)) * evaluations(rules.sample)
    work = Work(**{rules.sample.precision: flops * rules.sample.count})
    if rules.data.representation == "latents":
        work += Work(tf32=rules.sample.count * autoencoder_flops(DECODE_PIXEL, *size_hw(test)))
    return work


def detecting_work(rules: Protocol, images: int) -> Work:
    """A detector's look at some images."""
    if rules.score.detector not in DETECTORS:
        raise unknown("detector", rules.score.detector, DETECTORS)
    return Work(float32=images * DETECTORS[rules.score.detector].flops)


# --- Disk ------------------------------------------------------------------------------------------------------------

PICTURE = 112_000  # bytes of one of ImageNet's pictures in a shard, on average
PACKED = 0.4  # stored over raw bytes of a drawn picture (PNG)
OVERHEAD = 2_000  # bytes that tar adds to a sample
CHECKPOINT = 16  # bytes a weight: float32 raw, average, and AdamW's two moments
KEPT = 4  # checkpoints that lie side by side at most


def latents_bytes(rules: Protocol, train: str) -> int:
    """One sample of latents: mean and deviation, the picture and its mirror image, float16."""
    height, width = rules.latent_hw(train)
    return 2 * 2 * 2 * rules.core.channels * height * width + OVERHEAD


def training_bytes(rules: Protocol) -> float:
    """A training's folder at its largest: checkpoints, and the averaged weights."""
    return parameters(rules.core, OUTPUTS[rules.objective.name]) * (KEPT * CHECKPOINT + 4.0)


def cell_bytes(rules: Protocol, test: str) -> float:
    """A cell's images, kept as they are."""
    return rules.sample.count * 3.0 * math.prod(size_hw(test))


def features_bytes(rules: Protocol, test: str) -> float:
    """What a detector's look at a cell leaves on disk, spectra included."""
    return rules.sample.count * 4.0 * (DETECTORS[rules.score.detector].numbers + min(size_hw(test)) // 2)


# --- What is missing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of a contest: what it is, how far it is, and what is left of it."""

    kind: str  # shards, latents, train, reference, sample or score
    title: str
    state: str  # "whole", or what is missing
    work: Work = field(default_factory=Work)
    bytes: float = 0.0
    method: str = ""  # the trained one for "train"
    train: str = ""
    test: str = ""

    @property
    def whole(self) -> bool:
        return self.state == "whole"


@dataclass(frozen=True)
class Facts:
    """What the plan has to know of a method."""

    trained: str
    augments: bool  # its reader needs pixels: latents written beforehand are of no use to it


def facts(name: str, rules: Protocol) -> Facts:
    """Asks the method itself."""

    return Facts(registry.trained_name(name), augments(rules, name))


@dataclass
class Found:
    """The data set as it lies on this machine, as far as it does: no file is written to find out."""

    images: Path | None = None
    latents: dict[str, Path] = field(default_factory=dict)  # by size
    count: int = 0
    picture: float = PICTURE + OVERHEAD  # bytes of a sample in a shard


def find_data(rules: Protocol, run: Run) -> Found:
    """Looks for the contest's shards where the stages would look."""

    card = load_card(rules.data.card)
    if rules.data.count:
        card = dataclasses.replace(card, count=rules.data.count)
    found = Found(count=card.count)
    if card.size:
        found.picture = PACKED * 3 * math.prod(card.size) + OVERHEAD
    folder = Path(run.data) if run.data else None
    if folder is None or not (folder / "manifest.json").is_file():
        if card.kind != "shapes" and folder is None:
            return found
        pictures_at = source(card, run.data or None)
        found.count = len(pictures_at)
        folder = run.out / "data" / f"{card.name}-{writer.fingerprint(card, pictures_at)}"
        if not (folder / "manifest.json").is_file():
            return found
    near = {path.parent: read_manifest(path) for path in sorted((run.out / "data").glob("*/manifest.json"))}
    manifest = read_manifest(folder / "manifest.json")
    found.count = manifest["count"]
    pictures = manifest["images"] if manifest["kind"] == "latents" else manifest["fingerprint"]
    for place, about in [*near.items(), (folder, manifest)]:
        if about["kind"] == "latents" and about["images"] == pictures:
            found.latents[size_name(*about["size"])] = place
        elif about["fingerprint"] == pictures:
            found.images = place
            found.picture = sum(shard["bytes"] for shard in about["shards"]) / max(about["count"], 1)
    return found


def stages(rules: Protocol, methods: Sequence[str], seed: int, run: Run) -> list[Stage]:
    """Every stage of the contest for some methods, in the order in which a sweep comes to them."""
    data = find_data(rules, run)
    known = {name: facts(name, rules) for name in methods}
    latent = rules.data.representation == "latents"
    listed: list[Stage] = []
    encoded = latent and all(train in data.latents for train in rules.cells)
    if data.images is None and (not encoded or any(item.augments for item in known.values())):
        listed.append(Stage("shards", f"{rules.data.card}, {data.count:,} pictures", "missing", bytes=data.count * data.picture))
    elif data.images is not None:
        listed.append(Stage("shards", str(data.images), "whole"))
    if latent and not all(item.augments for item in known.values()):
        for train in rules.cells:
            if train in data.latents:
                listed.append(Stage("latents", str(data.latents[train]), "whole", train=train))
                continue
            title = f"{rules.data.card} at {train}, both flips"
            work = encoding_work(rules, train, 2.0 * data.count)
            listed.append(Stage("latents", title, "missing", work, float(data.count * latents_bytes(rules, train)), train=train))
    trained: set[tuple[str, str]] = set()
    referenced: set[str] = set()
    for method, fact in known.items():
        for train in rules.cells:
            mark = _data_hash(rules, data, fact, train, seed, run)
            training, stage = _training(rules, fact, train, seed, mark, run)
            if (fact.trained, train) not in trained:
                trained.add((fact.trained, train))
                listed.append(stage)
            for test in rules.cells[train]:
                drawn, scored = _cell(rules, Cell(method, train, test, seed), training, run)
                if test not in referenced:
                    referenced.add(test)
                    listed.append(_reference(rules, test, run))
                listed += [drawn, scored]
    return listed


def _data_hash(rules: Protocol, data: Found, fact: Facts, train: str, seed: int, run: Run) -> str | None:
    """The identity of what a training sees, as train.find_source has it; None where the data are not there yet."""
    if rules.data.representation == "pixels":
        return read_json(data.images / "manifest.json")["fingerprint"] if data.images else None
    if train in data.latents:  # those encoded on the way have the identity of the stored ones
        return read_json(data.latents[train] / "manifest.json")["fingerprint"]
    begun = any((run.out / "trainings").glob(f"{fact.trained}-{train}-s{seed}-*"))
    if not (data.images and fact.augments and begun):  # else the autoencoder need not be loaded
        return None

    return find_source(rules, fact.trained, train, run, verbose=False).hash


def _training(rules: Protocol, fact: Facts, train: str, seed: int, mark: str | None, run: Run) -> tuple[str | None, Stage]:
    """(the training's fingerprint, where the data is known; the stage)."""
    title = f"{fact.trained} at {train}"
    steps, done, trained = rules.train.steps, 0, None
    if mark is not None:
        trained = training_stage.fingerprint(rules, fact.trained, train, seed, mark)
        folder = training_stage.training_folder(fact.trained, train, seed, trained, run)
        if training_stage.is_whole(folder):
            return trained, Stage("train", title, "whole", method=fact.trained, train=train)
        found = [int(path.stem.split("=")[1].split("-")[0]) for path in folder.glob(f"{training_stage.CHECKPOINTS}/step=*.ckpt")]
        done = max(found, default=0)
    work = training_work(rules, train)
    if rules.data.representation == "latents" and fact.augments:
        work += encoding_work(rules, train, float(rules.train.batch) * steps)
    state = f"step {done:,} of {steps:,}" if done else "missing"
    return trained, Stage("train", title, state, work * (1 - done / steps), training_bytes(rules), fact.trained, train)


def _cell(rules: Protocol, cell: Cell, training: str | None, run: Run) -> tuple[Stage, Stage]:
    """The sampling and the scoring of a cell."""
    title = f"{cell.method} {cell.train} -> {cell.test}"
    where = (cell.method, cell.train, cell.test)
    count, batch = rules.sample.count, rules.sample.batch
    chunks, done, scores = -(-count // batch), 0, []
    if training is not None:
        from benchmark.run import sample

        folder = sample.cell_folder(rules, *where, cell.seed, training, run)
        done = chunks if sample.is_whole(folder) else len(list(folder.glob(f"{sample.CHUNKS}/chunk-*.npy")))
        values = [read_json(path) for path in sorted(folder.glob("record-*.json"))]
        scores = [value for value in values if _is_current(value, rules)]
        if done == chunks and not sample.is_whole(folder):
            done -= 1  # all drawn, but not yet put together
    left = 1 - done / chunks
    state = "whole" if done == chunks else f"{min(done * batch, count):,} of {count:,} images" if done else "missing"
    drawn = Stage("sample", title, state, sampling_work(rules, cell.test) * left, cell_bytes(rules, cell.test) * left, *where)
    if scores:
        written = any((local.records_folder(rules, run) / record.location(value)).is_file() for value in scores)
        return drawn, Stage("score", title, "whole" if written else "no record", Work(), 0.0, *where)
    work = detecting_work(rules, count)
    return drawn, Stage("score", title, "missing", work, features_bytes(rules, cell.test), *where)


def _is_current(value: dict[str, Any], rules: Protocol) -> bool:
    """Whether a cell's own record was made with these rules and today's revisions."""
    method = value["method"]["name"]
    return value["protocol"]["hash"] == rules.hash and not revision.is_stale(value.get("revisions"), method)


def _reference(rules: Protocol, test: str, run: Run) -> Stage:
    title = f"{rules.data.card} at {test}, {rules.score.reference:,} images"
    found = list((run.out / "references").glob(f"*-{test}-{rules.score.detector}-{rules.score.reference}-*.npz"))
    if found:
        return Stage("reference", title, "whole", test=test)
    kept = min(rules.score.nearest, rules.score.reference) * DETECTORS[rules.score.detector].numbers * 4.0
    return Stage("reference", title, "missing", detecting_work(rules, rules.score.reference), kept, test=test)


# --- Telling people --------------------------------------------------------------------------------------------------

KINDS = ("shards", "latents", "train", "reference", "sample", "score")


def show_bytes(count: float) -> str:
    """Bytes as "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count / 1000:.3g} PB"


def show_flops(count: float) -> str:
    """Operations as "1.2e18"."""
    return f"{count:.2e}".replace("e+", "e") if count else "–"


def show_hours(hours: float) -> str:
    """Hours with two or three digits; seconds where it is less than a minute."""
    if hours == 0:
        return "–"
    return f"{hours * 3600:.2g} s" if hours < 1 / 60 else f"{hours * 60:.2g} min" if hours < 1 else f"{hours:,.1f} h"


def print_plan(
    rules: Protocol,
    listed: Iterable[Stage],
    name: str,
    efficiency: float = 0.0,
    count: int = 1,
    console: rich.console.Console | None = None,
) -> None:
    """Prints what is missing in the order in which it would run, the totals, and what they rest on.

    Args:
        name: of the device.
        efficiency: the share of its peaks; 0 takes the device's.
        count: devices that share the work, for the time on the wall.
    """
    import rich.console
    from rich.table import Table

    listed = list(listed)
    chosen = device(name)
    if not 0 <= efficiency <= 1:
        raise UserError(f"an efficiency is a share between 0 and 1, not {efficiency}")
    share = efficiency or chosen.efficiency
    console = console or rich.console.Console()
    missing = [stage for stage in listed if not stage.whole]
    table = Table(title=f"{rules.name} ({rules.title}): what is missing, in order; rules {rules.hash}", title_justify="left")
    for column in ("", "stage", "of", "state", "operations", f"{name}-hours", "disk"):
        table.add_column(column, justify="left" if column in ("stage", "of", "state") else "right")
    rows: list[list[Stage]] = []
    for stage in missing:
        if stage.kind == "score" and rows and rows[-1][0].kind == "sample" and rows[-1][0].title == stage.title:
            rows[-1].append(stage)  # a cell is one row
        else:
            rows.append([stage])
    for number, row in enumerate(rows, start=1):
        work, size = sum((stage.work for stage in row), Work()), sum(stage.bytes for stage in row)
        figures = [show_flops(work.total), show_hours(work.hours(chosen, share)), show_bytes(size) if size else "–"]
        table.add_row(str(number), " + ".join(stage.kind for stage in row), row[0].title, row[0].state, *figures)
    if rows:
        console.print(table)
    totals = Table(title=f"totals: {len(missing)} of {len(listed)} stages are missing", title_justify="left")
    for column in ("stage", "whole", "missing", "operations", f"{name}-hours", "disk"):
        totals.add_column(column, justify="left" if column == "stage" else "right")
    for kind in (*KINDS, "all"):
        of = [stage for stage in listed if kind in (stage.kind, "all")]
        left = [stage for stage in of if not stage.whole]
        if not of:
            continue
        work = sum((stage.work for stage in left), Work())
        disk = show_bytes(sum(stage.bytes for stage in left)) if left else "–"
        cells = [str(len(of) - len(left)), str(len(left)), show_flops(work.total), show_hours(work.hours(chosen, share)), disk]
        totals.add_row(kind, *cells, style="bold" if kind == "all" else "", end_section=kind == "score")
    console.print(totals)
    for line in notes(rules, listed, chosen, share, count):
        console.print(line, highlight=False)


def notes(rules: Protocol, listed: Sequence[Stage], chosen: Device, share: float, count: int) -> list[str]:
    """What the figures rest on, and what stands out in them."""
    total = sum((stage.work for stage in listed if not stage.whole), Work()).hours(chosen, share)
    lines = [
        f"{chosen.title}: {share:.0%} of {chosen.bf16:g} (bf16), {chosen.tf32:g} (tf32) and {chosen.float32:g} (float32) "
        "TFLOP/s. An estimate: reading, metrics and waiting are not in it. Disk is what stages write, checkpoints at their most."
    ]
    if count > 1 and total:
        lines.append(f"On {count} devices that share the work evenly: {total / count:,.1f} h.")
    fresh = [stage for stage in listed if stage.kind == "train" and not stage.whole and stage.work.tf32]
    for stage in fresh:
        encoding = Work(tf32=stage.work.tf32).hours(chosen, share)
        core = stage.work.hours(chosen, share) - encoding
        lines.append(
            f"{stage.method} at {stage.train} augments in pixel space: its reader encodes every picture anew, "
            f"{show_hours(encoding)} on top of {show_hours(core)} (+{encoding / core:.0%}), and it needs the pictures' shards."
        )
    if rules.train.init and not Path(rules.train.init).is_file():
        lines.append(f"Its trainings start from a checkpoint ({rules.train.init}): give the file as train.init=PATH.")
    return lines
