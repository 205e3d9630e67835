"""Options shared by several commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmark import lazy, protocol, registry
from benchmark.files import UserError
from benchmark.identity import Cell, cells_of, methods_of
from benchmark.inputs import BITS
from benchmark.plan.layout import KEPT_IMAGES

if TYPE_CHECKING:
    from benchmark.plan.place import Run

Method = Annotated[str, typer.Argument(help="a file name in methods/; see `list`", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...; makes the run custom", show_default=False)]
ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="a file name in benchmark/protocols/, or a YAML file; see `list`; default: shapes, or folder with --data",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**BITS - 1, help="seed for training and sampling")]
Out = Annotated[Path, typer.Option(help="folder for runs")]
Data = Annotated[str, typer.Option(help="images or shards of the data set; not needed for the embedded one")]
Devices = Annotated[str, typer.Option(help="'auto' (with --cluster slurm: one), or the number of devices per node")]
Nodes = Annotated[int, typer.Option(help="number of nodes")]
Workers = Annotated[int, typer.Option(min=0, help="decoding processes per node; 0 uses half of its CPUs")]
Methods = Annotated[str, typer.Option(help="only these, separated by commas or spaces")]
Train = Annotated[str, typer.Option("--train", help="only this training size, e.g. 32x32")]
Test = Annotated[str, typer.Option("--test", help="only this test size, e.g. 64x48")]
Keep = Annotated[
    bool, typer.Option("--keep", help=f"keep all images of a cell (default: the first {KEPT_IMAGES}), and training checkpoints")
]
Compile = Annotated[bool, typer.Option("--compile", help="compile the core for training: slower to start, faster on a GPU")]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="train with deterministic kernels: slower on a GPU, but resumed trainings are bit-identical",
    ),
]
Weights = Annotated[str, typer.Option(help="the detector's weight file; default: DETECTOR_WEIGHTS, or downloaded")]
RUNS = Path("runs")
NARROW = 80  # columns, where there is no terminal

dataset, own = lazy.Module("benchmark.plan.dataset"), lazy.Module("benchmark.plan.own")


def load(name: str, overrides: list[str] | None, run: Run | None = None, write: bool = True) -> protocol.Protocol:
    """The protocol, after checking that the methods in its options exist; with a run, fitted to the user's own images.

    `write`: whether shards of the user's own images are written for that.
    """
    name = name or (own.default_protocol(run.data) if run else "shapes")
    found = own.fitted(name, overrides or (), run, write) if run else protocol.load(name, overrides or ())
    for method in [*found.options, *found.train.lr_of]:
        registry.check(method)
    for method in found.train.lr_of:
        if (base := registry.trained_name(method)) != method:
            raise UserError(f"train.lr_of.{method}: {method} is not trained, it uses the checkpoint of {base}")
    return found


def load_with_data(name: str, overrides: list[str] | None, run: Run) -> protocol.Protocol:
    """As `load`, for a command that reads images: fails at once, before torch is loaded, if their location is not given."""
    found = load(name, overrides, run)
    dataset.DataSet(found, run).require()
    return found


def chosen_methods(found: protocol.Protocol, methods: str) -> list[str]:
    """The methods that the option names, or all methods of the protocol."""
    names = methods.replace(",", " ").split() or methods_of(found)
    return list(dict.fromkeys(registry.check(name) for name in names))


def chosen_cells(found: protocol.Protocol, method: str, seed: int, train: str, test: str) -> list[Cell]:
    """The cells of a method that the options name."""
    registry.check(method)
    cells = [
        cell for cell in cells_of(found, [method], seed) if (not train or cell.train == train) and (not test or cell.test == test)
    ]
    if not cells:
        pairs = ", ".join(f"{a} -> {b}" for a, b in found.pairs())
        raise UserError(f"{found.name} has no cell {train or '*'} -> {test or '*'} (choose from: {pairs})")
    return cells


def console(width: int = NARROW) -> Console:
    """The terminal; `width` columns where there is none. Names of files and errors are no markup, whatever they hold."""
    return Console(width=None if sys.stdout.isatty() else width, markup=False)
