"""The printed plan of a protocol's remaining work and cost: totals, one line per method, and every stage on request."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmark.files import UserError
from benchmark.model.flops import Device
from benchmark.model.flops import device as known_device
from benchmark.plan.cost import Cost, checkpoints, detecting, show_bytes
from benchmark.plan.place import Run
from benchmark.plan.stages import MISSING, Sample, Score, Stage, Train
from benchmark.protocol import Protocol

KINDS = ("shards", "latents", "reference", "train", "sample", "score")


def make_bench(protocol: Protocol, method: str, seed: int = 0, run: Run | None = None) -> str:
    """The command that runs a row, for messages."""
    words = ["make bench", f"METHOD={method}", f"PROTOCOL={protocol.source}"]
    words += [f"SEED={seed}"] if seed else []
    if run is not None:
        words += [shlex.quote(f"OUT={run.out}")] if run.out != Run.out else []
        words += [shlex.quote(f"DATA={run.data}")] if run.data else []
    if protocol.overrides:
        text = " ".join(protocol.overrides)
        words.append(f'SET="{text}"' if not set('"$`\\!') & set(text) else shlex.quote(f"SET={text}"))
    return " ".join(words)


def show_operations(count: float) -> str:
    """Operations as "1.2e18"."""
    return f"{count:.2e}".replace("e+", "e") if count else "–"


def show_hours(hours: float) -> str:
    """Hours with two or three digits; minutes or seconds where it is less."""
    if hours == 0:
        return "–"
    return f"{hours * 3600:.2g} s" if hours < 1 / 60 else f"{hours * 60:.2g} min" if hours < 1 else f"{hours:,.1f} h"


def total(stages: Iterable[Stage]) -> Cost:
    """What is left of some stages."""
    return sum((stage.cost() for stage in stages), Cost())


def print_plan(
    protocol: Protocol,
    stages: Sequence[Stage],
    name: str,
    efficiency: float = 0.0,
    count: int = 1,
    price: float = 0.0,
    cells: bool = False,
    console: Console | None = None,
) -> None:
    """Prints the totals of what is missing, a line a method, and what the figures rest on.

    Args:
        name: of the device.
        efficiency: the share of its peaks; 0 takes the device's.
        count: devices that share the work, for the time on the wall.
        price: of a device-hour, in any currency; 0 shows none.
        cells: whether to list every stage that is missing, in the order in which it would run.
    """
    if not 0 <= efficiency <= 1:
        raise UserError(f"the efficiency must be between 0 and 1, not {efficiency}")
    if not 0 <= price < 1e6:
        raise UserError(f"the price of a device-hour must be between 0 and a million, not {price}")
    device = known_device(name)
    share = efficiency or device.efficiency
    console = console or Console()
    missing = [stage for stage in stages if not stage.is_complete()]

    def figures(some: Iterable[Stage]) -> list[str]:
        cost = total(some)
        hours = cost.hours(device, share)
        paid = [f"{hours * price:,.0f}" if hours else "–"] if price else []
        return [show_operations(cost.operations), show_hours(hours), *paid, show_bytes(cost.bytes) if cost.bytes else "–"]

    headings = ["operations", f"{name}-hours", *(["price"] if price else []), "disk"]
    title = f"{protocol.name}: {len(missing)} of {len(stages)} stages missing; protocol {protocol.hash}"
    table = _table("", ["stage", "complete", "missing", *headings], 1)
    for kind in (*KINDS, "all"):
        of = [stage for stage in stages if kind in (stage.kind, "all")]
        left = [stage for stage in of if not stage.is_complete()]
        if of:
            row = [kind, str(len(of) - len(left)), str(len(left)), *figures(left)]
            table.add_row(*row, style="bold" if kind == "all" else "", end_section=kind == "score")
    console.print(title, style="bold", highlight=False)
    console.print(table)
    methods: dict[str, list[Stage]] = {}
    for stage in missing:
        if isinstance(stage, Train):
            methods.setdefault(stage.training.method, []).append(stage)
        elif isinstance(stage, Sample | Score):
            methods.setdefault(stage.cell.method, []).append(stage)
    if methods:
        table = _table("by method: its own training, and its cells", ["method", "trainings", "cells", *headings], 1)
        for method, of in methods.items():
            counts = [str(sum(isinstance(stage, kind) for stage in of) or "–") for kind in (Train, Sample)]
            table.add_row(method, *counts, *figures(of))
        console.print(table)
    if cells and missing:
        # What a row has no room for in 80 columns beside a price: its operations, which the price follows.
        kept = slice(1 if price else 0, None)
        table = _table("every stage, in order", ["stage", "of", *["operations", "hours", *headings[2:]][kept]], 2)
        for stage in missing:
            begun = "" if stage.state() == MISSING else f"\n({stage.state()})"
            table.add_row(stage.kind, stage.title + begun, *figures([stage])[kept])
        console.print(table)
    for line in notes(protocol, stages, device, share, count, price):
        console.print(line, highlight=False)


def _table(title: str, headings: Sequence[str], words: int) -> Table:
    """A table that fits 80 columns: only its words are broken."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < words else "right", no_wrap=place >= words, overflow="fold")
    return table


def notes(
    protocol: Protocol, stages: Sequence[Stage], device: Device, share: float, count: int = 1, price: float = 0.0
) -> list[str]:
    """What the figures rest on, and what stands out in them."""
    hours = total(stages).hours(device, share)
    lines = [
        f"{device.title}: {share:.0%} of {device.bf16:g} (bf16), {device.tf32:g} (tf32) and {device.float32:g} (float32) "
        "TFLOP/s. Estimates exclude data loading, metrics and waiting. Disk is permanent usage."
    ]
    missing = [stage for stage in stages if not stage.is_complete()]
    if any(isinstance(stage, Train) and not stage.context.run.keep for stage in missing):
        lines.append(f"While a training runs, its checkpoints take up to {show_bytes(checkpoints(protocol))} more.")
    if count > 1 and hours:
        lines.append(f"On {count} devices, sharing the work evenly: {hours / count:,.1f} h.")
    if price and hours:
        lines.append(f"At {price:g} an hour of {device.title}: {hours * price:,.0f}.")
    made = [stage.full_cost().hours(device, share) for stage in missing if isinstance(stage, Sample) and not stage.shared]
    if made:
        detector = detecting(protocol, protocol.sample.count).hours(device, share)
        low, high = (100 * detector / hours for hours in (max(made), min(made)))
        lines.append(f"The detector takes {low:.2g} to {high:.2g} % of a cell's hours.")
    shared = sum(isinstance(stage, Sample) and stage.shared for stage in missing)
    if shared:
        lines.append(
            f"{shared} cells are assumed to share the images of their base method; this is checked bit by bit when they run."
        )
    for stage in missing:
        if isinstance(stage, Train) and (left := stage.autoencoder() * (1 - stage.done())).operations:
            encoding = left.hours(device, share)
            core = stage.cost().hours(device, share) - encoding
            lines.append(
                f"{stage.title} augments in pixel space: every image is encoded during training, {show_hours(encoding)} on top "
                f"of {show_hours(core)} (+{encoding / core:.0%}), and it needs the images' shards."
            )
    try:
        protocol.checkpoint()
    except UserError as error:
        lines.append(f"{error}.")
    return lines
