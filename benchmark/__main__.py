"""The verbs: `python -m benchmark <verb> --help`. `make` is the front door to the same."""

from __future__ import annotations

import errno
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from safetensors import SafetensorError

from benchmark import progress, protocol, registry
from benchmark.files import Stopped, UserError, is_full

# What the system says of a place that cannot be written: OUT is a file, or somebody else's.
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)

app = typer.Typer(
    name="python -m benchmark",
    help="PosBench: every strategy for positions in a Diffusion Transformer, on one core, at every train -> test resolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Method = Annotated[str, typer.Argument(help="a file name in methods/; `list` shows them", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ...; any makes the run a custom one", show_default=False)
]
ProtocolName = Annotated[str, typer.Option("--protocol", help="a file name in benchmark/protocols/, or a YAML file")]
Seed = Annotated[int, typer.Option(min=0, help="of training, sampling and the cells")]
Out = Annotated[Path, typer.Option(help="where runs are kept")]
Data = Annotated[str, typer.Option(help="the data set's images, or a folder of shards; the embedded one needs none")]
Devices = Annotated[str, typer.Option(help="'auto', or a number of devices on each node")]
Nodes = Annotated[int, typer.Option(help="machines")]
Workers = Annotated[int, typer.Option(min=0, help="processes on each node that decode pictures; 0 takes half of its processors")]
Methods = Annotated[str, typer.Option(help="only these, separated by commas")]
Train = Annotated[str, typer.Option("--train", help="only this training size, such as 32x32")]
Test = Annotated[str, typer.Option("--test", help="only this test size, such as 64x48")]


def rules_of(name: str, overrides: list[str] | None) -> protocol.Protocol:
    """The protocol, with options of methods that exist."""
    rules = protocol.load(name, overrides or ())
    for method in rules.options:
        registry.check(method)
    return rules


def run_of(out: Path, data: str, devices: str, nodes: int, **options):
    from benchmark.run.train import Run

    return Run(out, data, devices, nodes, **options)


def chosen_methods(rules: protocol.Protocol, methods: str) -> list[str]:
    """The methods that the option names, or all of the protocol."""
    from benchmark.run import local

    return [registry.check(name) for name in methods.split(",")] if methods else local.contestants(rules)


def chosen(rules: protocol.Protocol, methods: list[str], seed: int, train: str, test: str):
    """The cells that the options name."""
    from benchmark.run import local

    cells = [
        cell
        for cell in local.cells_of(rules, methods, seed)
        if (not train or cell.train == train) and (not test or cell.test == test)
    ]
    if not cells:
        pairs = ", ".join(f"{a} -> {b}" for a, b in rules.pairs())
        raise UserError(f"{rules.name} has no cell {train or '*'} -> {test or '*'} (there are: {pairs})")
    return cells


@app.command()
def shards(
    protocol_name: ProtocolName = "shapes",
    overrides: Overrides = None,
    data: Data = "",
    out: Out = Path("runs"),
    workers: Workers = 0,
) -> None:
    """Write a protocol's data set as webdataset shards with an index."""
    from benchmark.run.train import prepared

    prepared(rules_of(protocol_name, overrides), run_of(out, data, "1", 1, workers=workers))


@app.command()
def latents(
    protocol_name: ProtocolName = "imagenet-256-xl2",
    overrides: Overrides = None,
    data: Data = "",
    train: Train = "",
    out: Out = Path("runs"),
    devices: Devices = "auto",
    batch: Annotated[int, typer.Option(min=1, help="pictures in a forward pass")] = 16,
) -> None:
    """Encode a protocol's pictures as shards of latents, once for every training size; may be killed and continues.

    Trainings find them in OUT. The environment's AUTOENCODER names a local folder instead of the card's autoencoder.
    """
    from benchmark.data.card import load_card
    from benchmark.data.index import Index
    from benchmark.data.latents import (
        autoencoder_of,
        prepare_latents,
    )
    from benchmark.run.train import prepared

    rules = rules_of(protocol_name, overrides)
    if rules.data.representation != "latents":
        raise UserError(f"{rules.name} trains on pixels and needs no latents")
    run = run_of(out, data, devices, 1)
    name = autoencoder_of(load_card(rules.data.card))
    index = Index(prepared(rules, run))
    for size in [train] if train else rules.cells:
        if size not in rules.cells:
            raise UserError(f"{rules.name} does not train at {size} (there are: {', '.join(rules.cells)})")
        with progress.stage(f"latents {index.manifest['card']} {size}", len(index), "image") as stage:
            written = prepare_latents(
                index, out / "data", name, protocol.size_hw(size), devices=processors(run), batch=batch,
                progress=lambda done, _, stage=stage: stage.set(done),
            )  # fmt: skip
        progress.say(str(written))


def processors(run) -> list[str]:
    """The torch devices of a run on this machine."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return [f"{kind}:{number}" if kind == "cuda" else kind for number in range(run.count)]


@app.command()
def train(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    seed: Seed = 0,
    train: Train = "",
    out: Out = Path("runs"),
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    workers: Workers = 0,
    compile: Annotated[bool, typer.Option("--compile", help="compile the core: slow to start, then faster on a GPU")] = False,
    every_steps: Annotated[int, typer.Option(min=1, help="save a checkpoint after so many steps")] = 5000,
    every_minutes: Annotated[float, typer.Option(min=0.01, help="save a checkpoint after so many minutes")] = 2.0,
) -> None:
    """Train the checkpoint that a method uses, or continue its training."""
    from benchmark.run.train import train as fit

    rules = rules_of(protocol_name, overrides)
    registry.check(method)
    run = run_of(
        out, data, devices, nodes, workers=workers, compile=compile, every_steps=every_steps, every_minutes=every_minutes
    )
    for size in dict.fromkeys(cell.train for cell in chosen(rules, [method], seed, train, "")):
        progress.say(f"weights in {fit(rules, method, size, seed, run)}")


@app.command()
def sample(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    seed: Seed = 0,
    train: Train = "",
    test: Test = "",
    out: Out = Path("runs"),
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
) -> None:
    """Draw the images of a method's cells from its trained weights."""
    from benchmark.run import local

    rules = rules_of(protocol_name, overrides)
    registry.check(method)
    for cell in chosen(rules, [method], seed, train, test):
        progress.say(f"images in {local.sample(rules, cell, run_of(out, data, devices, nodes))}")


@app.command()
def score(
    method: Annotated[str, typer.Argument(help="a method whose cells are sampled; or give --samples", show_default=False)] = "",
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    seed: Seed = 0,
    train: Train = "",
    test: Test = "",
    out: Out = Path("runs"),
    data: Data = "",
    samples: Annotated[str, typer.Option(help="anybody's images: an evaluator .npz or a folder of pictures")] = "",
    reference: Annotated[str, typer.Option(help="reference statistics (.npz), or real images, for --samples")] = "",
    detector: Annotated[str, typer.Option(help="inception, dinov2 or shapes, for --samples")] = "inception",
    weights: Annotated[str, typer.Option(help="the detector's weight file; default DETECTOR_WEIGHTS or its download")] = "",
) -> None:
    """Score a method's cells; or, with --samples and --reference, images made by anybody."""
    if samples or reference:
        if not (samples and reference) or method:
            raise UserError("scoring files takes --samples and --reference, and no method")
        print_scores(samples, reference, detector, weights)
        return
    if not method:
        raise UserError("give a method, or --samples FILE --reference FILE")
    from benchmark.run import local

    rules = rules_of(protocol_name, overrides)
    registry.check(method)
    run = run_of(out, data, "auto", 1)
    for cell in chosen(rules, [method], seed, train, test):
        folder = local.sample(rules, cell, run)
        local.score(rules, cell, folder, run)
        local.keep_grid(rules, cell, folder, run)


def print_scores(samples: str, reference: str, detector: str, weights: str) -> None:
    """Scores files and prints a table."""
    from rich.console import Console
    from rich.table import Table

    from benchmark.evaluate.external import score_files

    with progress.stage("features", 1, "image") as stage:

        def report(done: int, total: int) -> None:
            stage.total = total
            stage.set(done)

        result = score_files(samples, reference, detector, weights or None, report=report)
    table = Table(title=f"{samples}: {result['count']} images against {reference}, detector {detector}")
    for column in ("score", "value", "low", "high"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, entry in result["scores"].items():
        table.add_row(name, *(f"{entry[key]:.4f}" if entry.get(key) is not None else "" for key in ("value", "low", "high")))
    Console().print(table)
    for kind in ("detector", "reference"):
        about = {"count": None, "source": None} | result[kind]
        count = f", {about['count']} images" if about["count"] else ""
        progress.say(f"{kind}  {about['source'] or about['name']}, hash {about['hash']}{count}")
    progress.say(f"detector's work  {result['looked']}")


@app.command()
def bench(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    seed: Seed = 0,
    out: Out = Path("runs"),
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
) -> None:
    """Everything for one method: shards, training, samples, scores, records, leaderboard."""
    rules = rules_of(protocol_name, overrides)
    registry.check(method)
    contest(rules, [method], seed, run_of(out, data, devices, nodes))


@app.command()
def sweep(
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    methods: Methods = "",
    seed: Seed = 0,
    out: Out = Path("runs"),
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    cluster: Annotated[str, typer.Option(help="submit jobs: 'slurm', or 'local' for this machine; else all runs here")] = "",
    resources: Annotated[str, typer.Option(help="YAML file: submitit's parameters by kind of job")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="stay until the submitted jobs have ended")] = False,
) -> None:
    """Everything for all methods of a protocol; shared trainings run once, failures do not stop the others.

    With --cluster the stages become jobs that depend on each other: trainings, then cells, then the leaderboards. Nodes that
    you already hold take a stage with torchrun: torchrun --nproc-per-node 8 -m benchmark train METHOD --devices 8 ...
    """
    rules = rules_of(protocol_name, overrides)
    names, run = chosen_methods(rules, methods), run_of(out, data, devices, nodes)
    if not cluster:
        if resources or wait:
            raise UserError("--resources and --wait belong to --cluster")
        contest(rules, names, seed, run)
        return
    from benchmark.run import slurm

    done = slurm.start(rules, names, seed, run, cluster, resources or None, wait)
    slurm.print_summary(done)
    lost = [f"{item.task.name}: {item.reason}" for item in done if item.state in ("failed", "skipped")]
    if lost:
        raise UserError(f"{len(lost)} of {len(done)} jobs failed or were skipped: " + "; ".join(lost[:5]))


@app.command()
def plan(
    protocol_name: Annotated[str, typer.Argument(help="a file name in benchmark/protocols/, or a YAML file")] = "shapes",
    overrides: Overrides = None,
    methods: Methods = "",
    device: Annotated[str, typer.Option(help="a100, h100, h200, b200, l40s, rtx4090 or cpu")] = "h100",
    efficiency: Annotated[float, typer.Option(help="assumed share of the device's peak; 0 takes the stated one")] = 0.0,
    count: Annotated[int, typer.Option(min=1, help="devices that share the work")] = 1,
    seed: Seed = 0,
    out: Out = Path("runs"),
    data: Data = "",
) -> None:
    """What a protocol still needs, in which order, with operations, device-hours and disk. Nothing runs, nothing is written."""
    from rich.console import Console

    from benchmark.run import plan

    rules = rules_of(protocol_name, overrides)
    plan.device(device)
    stages = plan.stages(rules, chosen_methods(rules, methods), seed, run_of(out, data, "1", 1))
    console = Console(width=None if sys.stdout.isatty() else 160)
    plan.print_plan(rules, stages, device, efficiency, count, console)


@app.command()
def reproduce(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    seed: Seed = 0,
    out: Out = Path("runs"),
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
) -> None:
    """Run a row again, or resume it, and compare with the committed record and the paper; no committed record is touched.

    Exit code 1 when a value differs by more than the recorded uncertainty allows.
    """
    from benchmark.run import reproduce

    rules = rules_of(protocol_name, overrides)
    registry.check(method)
    lines = reproduce.reproduce(rules, method, seed, run_of(out, data, devices, nodes))
    if any(line.word == reproduce.DIFFERS for line in lines):
        raise typer.Exit(1)


def contest(rules: protocol.Protocol, methods: list[str], seed: int, run) -> None:
    """Runs methods through every stage, then shows the table and what was written."""
    from rich.console import Console

    from benchmark.board import ranking
    from benchmark.results import record
    from benchmark.run import local

    failures = local.bench(rules, methods, seed, run)
    written = local.finish(rules, run)
    folder = local.records_folder(rules, run)
    values = [record.read(path, rules) for path in sorted((folder / rules.name).glob("*/*.json"))]
    Console(width=None if sys.stdout.isatty() else 160).print(ranking.rich_table(rules, values))
    progress.say(f"records  {folder / rules.name}")
    progress.say(f"samples  {run.out / 'cells' / rules.name} (grid.png in each)")
    for path in written:
        progress.say(f"wrote    {path}")
    if failures:
        raise UserError(f"{len(failures)} cells failed: " + "; ".join(f"{cell}: {reason}" for cell, reason in failures[:5]))


@app.command()
def reference(
    source: Annotated[str, typer.Argument(help="real images: 'shapes', a folder of pictures, or of shards")],
    size: Annotated[str, typer.Argument(help="HEIGHTxWIDTH in pixels, such as 512x384")],
    count: Annotated[int, typer.Option(min=2, help="how many images")] = 50_000,
    nearest: Annotated[int, typer.Option(min=4, help="how many of them for precision and recall")] = 10_000,
    detector: Annotated[str, typer.Option(help="inception, dinov2 or shapes")] = "inception",
    weights: Annotated[str, typer.Option(help="the detector's weight file; default DETECTOR_WEIGHTS or its download")] = "",
    out: Out = Path("runs"),
) -> None:
    """Make the reference statistics of real images at any size (ADM's centre crop)."""
    import torch

    from benchmark.evaluate import detectors
    from benchmark.evaluate.reference import make, open_source

    size_hw = protocol.size_hw(size)
    found = open_source(source)
    eye = detectors.load(detector, weights or None, "cuda" if torch.cuda.is_available() else "cpu")
    with progress.stage(f"reference {source} {size}", count, "image") as stage:
        made = make(found, size_hw, eye, count, nearest, out / "references", report=lambda done, _: stage.set(done))
    enlarged = f", {made.meta['upsampled']} of them enlarged" if made.meta["upsampled"] else ""
    progress.say(f"reference {made.hash} of {made.count} images{enlarged} in {out / 'references'}")


@app.command()
def export(
    samples: Annotated[str, typer.Argument(help="a cell's folder, or a folder of pictures")],
    file: Annotated[Path, typer.Argument(help="the evaluator's .npz to write (arr_0, uint8 [N, H, W, 3])")],
) -> None:
    """Write samples as the field's evaluator reads them, without holding them in memory."""
    from benchmark.evaluate.samples import export_npz, open_images

    images = open_images(samples)
    export_npz(images, file)
    progress.say(f"{images.count} images in {file}")


@app.command()
def weights(
    method: Method,
    file: Annotated[Path, typer.Argument(help="what to write, .pt or .safetensors", show_default=False)],
    overrides: Overrides = None,
    protocol_name: ProtocolName = "shapes",
    seed: Seed = 0,
    train: Train = "",
    out: Out = Path("runs"),
    data: Data = "",
) -> None:
    """Write a trained core in the published DiT layout, averaged weights."""
    from benchmark.model import checkpoint
    from benchmark.run import local
    from benchmark.run.train import load_weights

    rules = rules_of(protocol_name, overrides)
    registry.check(method)
    size = chosen(rules, [method], seed, train, "")[0].train
    folder, _ = local.trained(rules, method, size, seed, run_of(out, data, "1", 1))
    built = registry.build(registry.trained_name(method), rules, size, seed)
    load_weights(built, folder)
    checkpoint.export(built, file)
    progress.say(f"{method} {size} seed {seed} in {file}")


@app.command()
def detector(
    out: Annotated[Path | None, typer.Option(help="the file to write; default the shipped one")] = None,
    steps: Annotated[int, typer.Option(min=0, help="of training; 0 takes the default")] = 0,
    seed: Seed = 0,
) -> None:
    """Train the detector of the embedded data set and measure it at every size."""
    from rich.console import Console

    from benchmark.evaluate import classifier

    count = steps or classifier.STEPS
    with progress.stage("detector", count) as stage:
        stated = classifier.train(out or classifier.WEIGHTS, count, seed, lambda done, loss: stage.set(done, f"loss {loss:.3f}"))
    Console().print(stated)


@app.command()
def speed(
    size: Annotated[str, typer.Option(help="of the core: S, B, L or XL, with patch 2")] = "S",
    batch: Annotated[int, typer.Option(min=1, help="images a step")] = 8,
    rounds: Annotated[int, typer.Option(min=2, help="of which the first is not counted")] = 5,
    out: Out = Path("runs"),
) -> None:
    """Time the core against diffusers' DiT, and every method against plain RoPE, side by side."""
    from benchmark.measure.speed import measure

    measure(out, size, batch, rounds)


@app.command()
def spectrum() -> None:
    """Draw the angle spectrum of the rotary methods (leaderboards/spectrum.svg)."""
    from benchmark.measure.spectrum import draw

    progress.say(str(draw()))


@app.command()
def leaderboards(
    check: Annotated[bool, typer.Option(help="write nothing; fail where a file differs from its records")] = False,
) -> None:
    """Regenerate the leaderboards from the committed records."""
    from benchmark.board import generate

    for path in generate.generate(check=check):
        print(path)


@app.command(name="list")
def list_(out: Out = Path("runs")) -> None:
    """Methods, protocols and data sets, with what of them is cached."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(title="methods", title_justify="left")
    for column in ("name", "idea", "trained"):
        table.add_column(column)
    for name in registry.names():
        folders = sorted(path.parent.name for path in out.glob(f"trainings/{name}-*/weights.safetensors"))
        done = [folder.removeprefix(f"{name}-").rpartition("-")[0] for folder in folders]
        table.add_row(name, registry.describe(name), ", ".join(done))
    console.print(table)
    table = Table(title="protocols", title_justify="left")
    for column in ("name", "title", "hash", "cells", "sampled"):
        table.add_column(column)
    for name in protocol.names():
        rules = protocol.load(name)
        drawn = len(list(out.glob(f"cells/{name}/*/samples.json")))
        table.add_row(name, rules.title, rules.hash, str(len(rules.pairs())), str(drawn or ""))
    console.print(table)
    table = Table(title="data sets", title_justify="left")
    for column in ("name", "description", "shards"):
        table.add_column(column)
    import yaml

    from benchmark.files import ROOT

    for path in sorted((ROOT / "datasets").glob("*.yaml")):
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
        written = [str(found.parent) for found in out.glob(f"data/{path.stem}-*/manifest.json")]
        table.add_row(path.stem, str(card.get("description", "")), ", ".join(sorted(written)))
    console.print(table)


def stop(number: int, frame: object) -> NoReturn:
    """Ctrl-C and SIGTERM. Files are whole or absent, so leaving is safe everywhere; training puts its own handler on top.

    A terminal and SLURM signal the whole group; a worker that decodes has to live on until the main process has saved.
    """
    if multiprocessing.parent_process() is not None:
        return
    signal.signal(number, signal.SIG_IGN)  # a second one would cut short what cleans up after the first
    raise Stopped("stopped; what was finished is kept, and the same command continues", 128 + number)


def main() -> int:
    """Runs the command line; errors for people become one line and exit code 2."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as reason:
        print(reason, file=sys.stderr)
        return reason.code
    except (OSError, SafetensorError) as error:
        if is_full(error):
            where = getattr(error, "filename", None)
            print(f"error: no space left on the device{f' ({where})' if where else ''}; free some and run again", file=sys.stderr)
        elif getattr(error, "errno", None) in DENIED:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
