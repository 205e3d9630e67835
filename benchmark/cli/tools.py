"""The commands for scoring any image files, for leaderboards, and for measuring this project itself."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from benchmark import lazy, progress, protocol, registry
from benchmark.cli.options import (
    RUNS,
    Data,
    Keep,
    Method,
    Out,
    Overrides,
    ProtocolName,
    Seed,
    Test,
    Train,
    Weights,
    chosen_cells,
    console,
    load,
    load_with_data,
)
from benchmark.data.card import card_names, load_card
from benchmark.data.index import manifests
from benchmark.files import UserError, unknown
from benchmark.identity import reference_ending
from benchmark.plan import layout

boards, local, losses, sampling, training = (
    lazy.Module(f"benchmark.run.{name}") for name in ("boards", "local", "loss", "sample", "train")
)
place, stages = lazy.Module("benchmark.plan.place"), lazy.Module("benchmark.plan.stages")
classifier, detectors, external, photos, trainings, references, samples_of = (
    lazy.Module(f"benchmark.evaluate.{name}")
    for name in ("classifier", "detectors", "external", "photos", "photos_training", "reference", "samples")
)
checkpoint = lazy.Module("benchmark.model.checkpoint")
generation, ranking = lazy.Module("benchmark.board.generate"), lazy.Module("benchmark.board.ranking")
speeds, spectra = lazy.Module("benchmark.measure.speed"), lazy.Module("benchmark.measure.spectrum")
app = typer.Typer()
EVALUATE, BOARDS, OTHER = "Evaluate", "Leaderboards", "Other"
DETECTORS = ", ".join(registry.detectors())
SMALL = ("photos", "shapes")  # detectors that are trained here
MOST = 50_000  # images of a reference if no number is given, as is customary
OF_CELLS = ("overrides", "protocol_name", "seed", "train", "test", "out", "data", "keep")  # what `score --samples` does not read


@app.command(rich_help_panel=EVALUATE)
def score(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="score the cells of this method; or use --samples", show_default=False)] = "",
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    train: Train = "",
    test: Test = "",
    out: Out = RUNS,
    data: Data = "",
    keep: Keep = False,
    samples: Annotated[str, typer.Option(help="any images: an evaluator .npz or a folder")] = "",
    reference: Annotated[str, typer.Option(help="reference statistics (.npz), or real images, for --samples")] = "",
    detector: Annotated[str, typer.Option(help=f"{DETECTORS}, for --samples; default: inception")] = "",
    weights: Weights = "",
    as_json: Annotated[bool, typer.Option("--json", help="print a single JSON object, for --samples")] = False,
) -> None:
    """Score a method's cells, sampling them first if needed; or, with --samples and --reference, any images."""
    if samples or reference:
        if not (samples and reference) or method:
            raise UserError("scoring files needs --samples and --reference, and no method")
        sources = {name: context.get_parameter_source(name) for name in OF_CELLS}
        unread = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
        if unread:
            options = ", ".join(f"--{name.removesuffix('_name')}" if name != "overrides" else "overrides" for name in unread)
            raise UserError(f"{options}: only for scoring a method, not for --samples")
        print_scores(samples, reference, detector or "inception", weights, as_json)
        return
    if not method:
        raise UserError("give a method, or --samples FILE --reference FILE")
    if detector or weights or as_json:
        raise UserError("--detector, --weights and --json belong to --samples: a method's cells use the protocol's detector")
    run = place.Run(out, data, "auto", 1, keep=keep)
    found = load_with_data(protocol_name, overrides, run)
    wanted = set(chosen_cells(found, method, seed, train, test))
    graph = stages.graph(found, [method], seed, run)
    tests = {cell.test for cell in wanted}
    local.raise_for(
        local.run_all(
            stage
            for stage in graph
            if (stage.test in tests if stage.kind == "reference" else getattr(stage, "cell", None) in wanted)
        )
    )


def print_scores(samples: str, reference: str, detector: str, weights: str, as_json: bool = False) -> None:
    """Scores files and prints a table; or one JSON object alone, for programs."""
    if as_json:
        result = external.score_files(samples, reference, detector, weights or None)
        for entry in result["scores"].values():
            entry.pop("replicates", None)
        print(json.dumps({"samples": samples, **result}, sort_keys=True, allow_nan=False))
        return
    with progress.stage("features", 1, "image") as stage:
        result = external.score_files(samples, reference, detector, weights or None, report=stage.report)
    table = Table(title=Text(f"{samples}: {result['count']} images against {reference}, detector {detector}"))
    for column in ("score", "value", "low", "high"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, entry in result["scores"].items():
        table.add_row(name, *(f"{entry[key]:.4f}" if entry.get(key) is not None else "" for key in ("value", "low", "high")))
    console(160).print(table)
    for kind in ("detector", "reference"):
        about = {"count": None, "source": None} | result[kind]
        count = f", {about['count']} images" if about["count"] else ""
        enlarged = f", {about['upsampled']} of them enlarged" if about.get("upsampled") else ""
        progress.say(f"{kind}  {about['source'] or about['name']}, hash {about['hash']}{count}{enlarged}")
    if result["nearest"]:
        progress.say(f"precision, recall  against {result['nearest']} real images, by exact distances (ADM's evaluator: float16)")
    progress.say(f"inception score  mean over {result['splits']} splits")
    progress.say(f"detector throughput  {result['extraction']}")


@app.command(rich_help_panel=EVALUATE)
def loss(
    method: Method,
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    train: Train = "",
    test: Test = "",
    out: Out = RUNS,
    data: Data = "",
    against: Annotated[str, typer.Option(help="a method to compare with; default: the one whose checkpoint it uses")] = "",
    heldout: Annotated[str, typer.Option(help="a folder of held-out shards")] = "",
    levels: Annotated[bool, typer.Option("--levels", help="show every noise level")] = False,
) -> None:
    """Measure the denoising loss of a trained method at every test size, on held-out images if available, without sampling."""
    run = place.Run(out, data, "auto", 1)
    rules = load_with_data(protocol_name, overrides, run)
    cells = chosen_cells(rules, method, seed, train, test)
    base = registry.check(against) if against else cells[0].training.method
    sampling.check_settings(rules, [method, base])
    losses.print_losses(losses.compared(cells, run, against, heldout), base, levels, console(160))


@app.command(rich_help_panel=EVALUATE)
def reference(
    source: Annotated[str, typer.Argument(help="real images: 'shapes', or a folder of images or shards")],
    size: Annotated[str, typer.Argument(help="HEIGHTxWIDTH in pixels, e.g. 512x384")],
    count: Annotated[int, typer.Option(min=0, help="number of images; 0 uses all, at most 50,000")] = 0,
    nearest: Annotated[int, typer.Option(min=4, help="number of them for precision and recall")] = 10_000,
    detector: Annotated[str, typer.Option(help=DETECTORS)] = "inception",
    weights: Weights = "",
    out: Out = RUNS,
) -> None:
    """Compute reference statistics of real images at any size (ADM's centre crop)."""
    size_hw, folder = protocol.size_hw(size), out / "references"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # whether it can be written is told now, and not after the work
        pass
    found, loaded = references.open_source(source), detectors.load(detector, weights or None, place.device())
    count = count or (MOST if found.count is None else min(found.count, MOST))
    with progress.stage(f"reference {source} {size}", count, "image") as stage:
        made = references.make(found, size_hw, loaded, count, nearest, folder, report=lambda done, _: stage.set(done))
    enlarged = f", {made.meta['upsampled']} of them enlarged" if made.meta["upsampled"] else ""
    for file in folder.glob(f"*{reference_ending(made.hash, loaded.name)}"):
        progress.say(f"reference of {made.count} images{enlarged} in {file}")


@app.command(rich_help_panel=EVALUATE)
def export(
    samples: Annotated[str, typer.Argument(help="a cell's folder, or a folder of images")],
    file: Annotated[Path, typer.Argument(help="the .npz to write (arr_0, uint8 [N, H, W, 3])")],
) -> None:
    """Write samples as an .npz for ADM's evaluator, without loading them into memory."""
    images = samples_of.open_images(samples)
    samples_of.export_npz(images, file)
    progress.say(f"{images.count} images in {file}")


@app.command(rich_help_panel=BOARDS)
def leaderboards(
    check: Annotated[bool, typer.Option("--check", help="write nothing; fail if a file does not match the records")] = False,
    against: Annotated[str, typer.Option(help="write nothing; show what changed since this folder of records")] = "",
) -> None:
    """Regenerate leaderboards/ from the committed records."""
    if against:
        if check:
            raise UserError("--against and --check cannot be combined; give one of them")
        if not Path(against).is_dir():
            raise UserError(f"{against} is not a folder of records")
        print(ranking.ranking_changes(against, boards.BOARDS / "records"))
        return
    with contextlib.nullcontext() if check else boards.changing():
        for path in generation.generate(check=check):
            print(path)


@app.command(rich_help_panel=BOARDS)
def submit(
    method: Method,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    out: Out = RUNS,
    data: Data = "",
) -> None:
    """Copy a complete row from OUT into leaderboards/, regenerate them, and show the change in the ranking."""
    registry.check(method)
    run = place.Run(out, data, "1", 1)
    written, changes = boards.submit(load(protocol_name, None, run), method, seed, run)
    print(changes)
    progress.say(f"{len(written)} files written below {boards.BOARDS}: commit them and open a pull request")


@app.command(rich_help_panel=OTHER)
def weights(
    method: Method,
    file: Annotated[Path, typer.Argument(help="the file to write, .pt or .safetensors", show_default=False)],
    overrides: Overrides = None,
    protocol_name: ProtocolName = "",
    seed: Seed = 0,
    train: Train = "",
    out: Out = RUNS,
    data: Data = "",
) -> None:
    """Export the averaged weights of a trained core in the published DiT layout."""
    run = place.Run(out, data, "1", 1)
    rules = load(protocol_name, overrides, run)
    item = chosen_cells(rules, method, seed, train, "")[0].training
    sampling.check_settings(rules, [method])
    folder, _ = training.trained(item, run)
    built = registry.build(item.method, item.protocol, item.size, item.seed)
    training.load_weights(built, folder)
    checkpoint.export(built, file)
    progress.say(f"{item} in {file}")


@app.command(rich_help_panel=OTHER)
def detector(
    name: Annotated[str, typer.Option(help="shapes for the embedded data set, or photos for the classes in --data")] = "shapes",
    data: Annotated[str, typer.Option(help="for photos: a folder with train/CLASS and val/CLASS, or as --card describes")] = "",
    card: Annotated[str, typer.Option(help="for photos: the card in datasets/ that describes --data; default: own")] = "",
    out: Annotated[
        Path | None, typer.Option(help="the file to write; default: the shipped one, for shapes or imagenet-64")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="training steps; 0 uses the default")] = 0,
    seed: Seed = 0,
) -> None:
    """Train a small detector, and test it at every size on held-out images.

    To score with the file, pass it as --weights or set DETECTOR_WEIGHTS.
    """
    if name not in SMALL:
        raise unknown("small detector", name, SMALL)
    if name == "shapes" and (data or card):
        raise UserError("--data and --card belong to --name photos: the images of shapes are rendered")
    if name == "photos" and not data:
        raise UserError("the photos detector is trained on images: give their folder as --data")
    if name == "photos" and card != trainings.CARD and out is None:
        raise UserError(f"the shipped photos detector is for the card {trainings.CARD}: give the file for yours as --out")
    count = steps or (trainings if name == "photos" else classifier).STEPS
    with progress.stage(f"detector {name}", count) as stage:

        def report(done: int, loss: float) -> None:
            stage.set(done, f"loss {loss:.3f}")

        if name == "photos":
            stated = trainings.train(data, out or photos.WEIGHTS, RUNS, count, seed, report, card or "own")
        else:
            stated = classifier.train(out or classifier.WEIGHTS, count, seed, report)
    console().print(stated)


@app.command(rich_help_panel=OTHER)
def speed(
    size: Annotated[str, typer.Option(help="core size: S, B, L or XL, with patch 2")] = "S",
    batch: Annotated[int, typer.Option(min=1, help="images per step")] = 8,
    rounds: Annotated[int, typer.Option(min=2, help="timing rounds; the first is a warm-up")] = 5,
    out: Out = RUNS,
) -> None:
    """Time the core against diffusers' DiT, and every method against plain RoPE, side by side."""
    speeds.measure(out, size, batch, rounds)


@app.command(rich_help_panel=OTHER)
def spectrum() -> None:
    """Plot the angle spectrum of the rotary methods (leaderboards/spectrum.svg)."""
    progress.say(str(spectra.draw()))


@app.command(name="list", rich_help_panel=OTHER)
def list_(out: Out = RUNS) -> None:
    """List methods, protocols and data sets, and what exists of them under OUT."""
    shown = console()
    trained = {name: _trained(name, out) for name in registry.names()}
    rows = []
    for name, sizes in trained.items():
        about = registry.about(name)
        paper = about.paper.removeprefix("https://arxiv.org/abs/").removeprefix("https://").partition("/")[0]
        rows.append([name, about.title, about.kind, str(about.year or ""), paper, sizes])
    shown.print(_table("methods", ["name", "title", "kind", "year", "paper", "trained"], rows))
    rows = []
    for name in protocol.names():
        found = protocol.load(name)
        sampled = len(list(out.glob(f"cells/{name}/*/{layout.DONE}")))
        rows.append([name, found.title, found.hash, str(len(found.pairs())), str(sampled or "")])
    shown.print(_table("protocols", ["name", "title", "hash", "cells", "sampled"], rows))
    rows = []
    written: dict[str, list[str]] = {}
    for folder, manifest in manifests(out / "data").items():
        written.setdefault(manifest["card"], []).append(str(folder))
    for name in card_names():
        rows.append([name, load_card(name).description, ", ".join(written.get(name, []))])
    shown.print(_table("data sets", ["name", "description", "shards"], rows))


def _trained(name: str, out: Path) -> str:
    """The sizes and seeds at which a method's training is complete in OUT."""
    folders = sorted(folder.name for folder in out.glob(f"trainings/{name}-*") if layout.is_trained(folder))
    return ", ".join(dict.fromkeys(folder.removeprefix(f"{name}-").rpartition("-")[0] for folder in folders))


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table that fits 80 columns and never truncates names; other columns wrap. The last column, what is in OUT, is omitted
    if it is empty."""
    used = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for place_, column in enumerate(columns[:used]):
        table.add_column(column, no_wrap=place_ == 0 or column in ("kind", "year", "hash"), overflow="fold")
    for row in rows:
        table.add_row(*row[:used])
    return table
