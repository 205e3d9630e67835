"""The commands that run a protocol: everything at once, single stages, and cost estimates."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmark import lazy, progress, registry
from benchmark.cli.options import (
    RUNS,
    Compile,
    Data,
    Deterministic,
    Devices,
    Keep,
    Method,
    Methods,
    Nodes,
    Out,
    Overrides,
    ProtocolName,
    Seed,
    Test,
    Train,
    Workers,
    chosen_cells,
    chosen_methods,
    console,
    load,
    load_with_data,
)
from benchmark.files import UserError
from benchmark.model import flops
from benchmark.plan import layout
from benchmark.protocol import Protocol

boards, to_latents, local, reproduction, sampling, slurm, training = (
    lazy.Module(f"benchmark.run.{name}") for name in ("boards", "latents", "local", "reproduce", "sample", "slurm", "train")
)
place, plans, stages = (lazy.Module(f"benchmark.plan.{name}") for name in ("place", "report", "stages"))
rankings = lazy.Module("benchmark.board.ranking")
record = lazy.Module("benchmark.results.record")
app = typer.Typer()
MAIN, STAGES = "Run a benchmark", "Run a single stage"


@app.command(rich_help_panel=MAIN)
def bench(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    out: Out = RUNS,
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    compile: Compile = False,
    deterministic: Deterministic = False,
    keep: Keep = False,
) -> None:
    """Run everything for one method: shards, training, samples, scores, records, and a leaderboard under OUT."""
    registry.check(method)
    run = place.Run(out, data, devices, nodes, compile=compile, deterministic=deterministic, keep=keep)
    run_all(load(protocol_name, overrides, run), [method], seed, run)


@app.command(rich_help_panel=MAIN)
def sweep(
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    methods: Methods = "",
    seed: Seed = 0,
    out: Out = RUNS,
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    compile: Compile = False,
    deterministic: Deterministic = False,
    keep: Keep = False,
    cluster: Annotated[str, typer.Option(help="submit jobs: 'slurm', or 'local' for this machine; default: run here")] = "",
    resources: Annotated[str, typer.Option(help="YAML file of submitit parameters by job kind")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="wait until the submitted jobs have ended")] = False,
) -> None:
    """Run everything for all methods of a protocol; shared trainings run once, and failures do not stop the rest.

    With --cluster the stages become jobs that depend on each other: trainings, then cells, then the leaderboards.

    On allocated nodes, torchrun runs one stage: torchrun --nproc-per-node 8 -m benchmark train METHOD --devices 8 ...
    """
    run = place.Run(out, data, devices, nodes, compile=compile, deterministic=deterministic, keep=keep)
    protocol = load(protocol_name, overrides, run)
    names = chosen_methods(protocol, methods)
    if not cluster:
        if resources or wait:
            raise UserError("--resources and --wait need --cluster")
        run_all(protocol, names, seed, run)
        return
    done = slurm.start(protocol, names, seed, run, cluster, resources or None, wait)
    slurm.print_summary(done, console(200))
    lost = [f"{item.task.name}: {item.reason}" for item in done if item.state in ("failed", "skipped")]
    if lost:
        raise UserError(f"{len(lost)} of {len(done)} jobs failed or were skipped: " + "; ".join(lost[:5]))


def run_all(protocol: Protocol, methods: list[str], seed: int, run) -> None:
    """Runs methods through every stage, then prints the table and the locations of the results."""
    failures = local.bench(protocol, methods, seed, run)
    show_board(protocol, run)
    local.raise_for(failures)


def show_board(protocol: Protocol, run) -> None:
    """Makes the run's leaderboard and prints its table."""
    made, own = boards.board(protocol, run), stages.records_folder(protocol, run) / protocol.name
    paths = {path.relative_to(own): path for path in own.glob("*/*.json")}
    if not paths:
        progress.say(f"no records of {protocol.name} in {run.out} yet")
        return
    new = {place.parts[1] for place in boards.new_records(protocol, run)} if made else set()
    if made:  # not those below it, which another run that shares OUT may be writing
        committed = boards.BOARDS / "records" / protocol.name
        paths = {path.relative_to(committed): path for path in committed.glob("*/*.json")} | paths
    values = [record.read(path, protocol) for _, path in sorted(paths.items())]
    if problems := record.disagreements(values):
        progress.say(f"no table: these records cannot share one ({'; '.join(problems[:2])}); choose another OUT for each")
    else:
        console(160).print(rankings.rich_table(protocol, values, new))
    progress.say(f"records  {own}")
    progress.say(f"samples  {run.out / 'cells' / protocol.name} ({layout.GRID} in each)")
    if made:
        progress.say(f"board    {made / 'index.html'} (with the committed records)")


@app.command(rich_help_panel=MAIN)
def plan(
    protocol_name: Annotated[
        str, typer.Argument(help="a file name in benchmark/protocols/, or a YAML file", show_default=False)
    ] = "",
    overrides: Overrides = None,
    methods: Methods = "",
    device: Annotated[str, typer.Option(help=", ".join(flops.DEVICES))] = "h100",
    efficiency: Annotated[float, typer.Option(help="assumed share of peak FLOPS; 0 uses the default")] = 0.0,
    count: Annotated[int, typer.Option(min=1, help="number of devices")] = 1,
    price: Annotated[float, typer.Option(help="per device-hour; adds costs in money")] = 0.0,
    cells: Annotated[bool, typer.Option("--cells", help="list every missing stage")] = False,
    seed: Seed = 0,
    out: Out = RUNS,
    data: Data = "",
    keep: Keep = False,
) -> None:
    """Estimate what a protocol still needs: FLOPs, device-hours and disk. Nothing is run or written."""
    flops.device(device)
    run = place.Run(out, data, "1", 1, keep=keep)
    protocol = load(protocol_name, overrides, run, write=False)
    found = stages.graph(protocol, chosen_methods(protocol, methods), seed, run)
    plans.print_plan(protocol, found, device, efficiency, count, price, cells, console())


@app.command(rich_help_panel=MAIN)
def reproduce(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Annotated[int, typer.Option(min=-1, help="seed of a committed row; -1 uses the first recorded one")] = -1,
    out: Out = RUNS,
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    compile: Compile = False,
    deterministic: Deterministic = False,
) -> None:
    """Run a committed row again, or resume it, and compare. Committed records are not modified.

    Exit code 1 if a value differs by more than the recorded uncertainty allows.
    """
    registry.check(method)
    run = place.Run(out, data, devices, nodes, compile=compile, deterministic=deterministic)
    lines = reproduction.reproduce(load(protocol_name, overrides, run), method, None if seed < 0 else seed, run)
    if any(line.word == reproduction.DIFFERS for line in lines):
        raise typer.Exit(1)


@app.command(rich_help_panel=STAGES)
def shards(
    protocol_name: ProtocolName = "",
    overrides: Overrides = None,
    data: Data = "",
    out: Out = RUNS,
    workers: Workers = 0,
) -> None:
    """Write a protocol's data set as webdataset shards with an index."""
    run = place.Run(out, data, "1", 1, workers=workers)
    protocol = load_with_data(protocol_name, overrides, run)  # before `training` is asked for, which loads torch
    training.prepared(protocol, run)


@app.command(rich_help_panel=STAGES)
def latents(
    protocol_name: Annotated[
        str, typer.Option("--protocol", help="a file name in benchmark/protocols/, or a YAML file; see `list`")
    ] = "imagenet-256-xl2",
    overrides: Overrides = None,
    data: Data = "",
    train: Train = "",
    out: Out = RUNS,
    devices: Devices = "auto",
    batch: Annotated[int, typer.Option(min=1, help="images per forward pass")] = 16,
) -> None:
    """Encode a protocol's images as shards of latents, once per training size; resumes if interrupted.

    Trainings find them in OUT. The environment variable AUTOENCODER sets a local folder to use instead of the card's autoencoder.
    """
    run = place.Run(out, data, devices, 1)
    protocol = load_with_data(protocol_name, overrides, run)
    if protocol.data.representation != "latents":
        raise UserError(f"{protocol.name} trains on pixels and needs no latents")
    if train and train not in protocol.cells:
        raise UserError(f"{protocol.name} does not train at {train} (choose from: {', '.join(protocol.cells)})")
    to_latents.make_latents(protocol, run, [train] if train else protocol.cells, batch)


@app.command(rich_help_panel=STAGES)
def train(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    train: Train = "",
    out: Out = RUNS,
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    workers: Workers = 0,
    compile: Compile = False,
    deterministic: Deterministic = False,
    every_steps: Annotated[int, typer.Option(min=1, help="save a checkpoint every so many steps")] = 5000,
    every_minutes: Annotated[
        float, typer.Option(min=0.01, max=1e6, help="and every so many minutes, less often if saving is slow")
    ] = 2.0,
    keep: Keep = False,
) -> None:
    """Train the checkpoint that a method uses, or resume its training."""
    run = place.Run(out, data, devices, nodes, workers, compile, deterministic, keep, every_steps, every_minutes)
    protocol = load_with_data(protocol_name, overrides, run)
    for item in dict.fromkeys(cell.training for cell in chosen_cells(protocol, method, seed, train, "")):
        progress.say(f"weights in {training.train(item, run)}")


@app.command(rich_help_panel=STAGES)
def sample(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    train: Train = "",
    test: Test = "",
    out: Out = RUNS,
    data: Data = "",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    keep: Keep = False,
) -> None:
    """Generate the images of a method's cells from its trained weights."""
    run = place.Run(out, data, devices, nodes, keep=keep)
    for cell in chosen_cells(load_with_data(protocol_name, overrides, run), method, seed, train, test):
        progress.say(f"images in {sampling.sample(cell, run)}")


@app.command(rich_help_panel=STAGES)
def board(
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    out: Out = RUNS,
    data: Data = "",
) -> None:
    """Make a run's leaderboard under OUT from its records and the committed ones."""
    run = place.Run(out, data, "1", 1)
    show_board(load(protocol_name, overrides, run if data else None), run)
