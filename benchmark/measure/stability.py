"""Stability of the ranking under a change of recipe: Kendall's tau between two sets of records.

    python -m benchmark.measure.stability --beside shapes

    make sweep PROTOCOL=shapes-long METHODS="rpe2d yarn ledit" SEED=1000 SET="core.width=192 core.heads=6"
    python -m benchmark.measure.stability core.width=192 core.heads=6

    python -m benchmark.measure.stability --spread   # how the standard deviation over seeds grows with the value

Compares the committed records of a protocol with those of another one, such as its rehearsal, or with those of a custom run
(under OUT, by its overrides), at every square size beyond the training size, over the methods that both have: an order that
another width or learning rate turns round says more of the recipe than of the methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Printed

from benchmark import protocol
from benchmark.board import published, table
from benchmark.board.pairs import BY
from benchmark.board.table import Column, Table
from benchmark.files import UserError, exit_code, read_json
from benchmark.plan.place import Run
from benchmark.plan.stages import records_folder
from benchmark.results import record
from benchmark.results.record import METRICS

FEWEST = 3  # methods that have an order worth a tau
Values = Mapping[str, float]  # by method


def committed(board: Table, metric: str, column: Column) -> Values:
    """The committed values of a measure at a column: means over seeds."""
    found = {row.method: row.entries[metric, column].value for row in board.rows if (metric, column) in row.entries}
    return {method: value for method, value in found.items() if value is not None}


def changed(folder: Path, name: str, metric: str, column: Column) -> Values:
    """The values of another protocol or of a custom run: means over the seeds that it has."""
    found: dict[str, list[float]] = {}
    for path in sorted((folder / name).glob(f"*/{column.train}-{column.test}-s*.json")):
        scores = read_json(path)["scores"]
        if scores and metric in scores:
            found.setdefault(path.parent.name, []).append(scores[metric]["value"])
    return {method: table.mean(values) for method, values in found.items()}


def tau(before: Values, after: Values) -> tuple[float | None, list[str]]:
    """Kendall's tau over the methods that both have, and those methods in the order before; None for too few."""
    methods = sorted(set(before) & set(after), key=lambda method: (before[method], method))
    if len(methods) < FEWEST:
        return None, methods
    return float(published.kendall([before[m] for m in methods], np.array([after[m] for m in methods]))), methods


def compare(rules: protocol.Protocol, folder: Path, name: str, told: str) -> Printed:
    """The table: a row for each size, a column for each measure.

    Args:
        folder, name: where the other records lie, and the protocol under which they do.
        told: what they are, in words.
    """
    board = table.build(rules, record.read_all())
    made = Printed(title=f"{rules.name}: Kendall's tau between the committed order and that {told}")
    for heading in ("size", *(METRICS[metric].title for metric in BY), "methods, best first by FID before", "after"):
        made.add_column(heading)
    for column in board.pairs:
        if column.group != "beyond" or not column.is_square:
            continue
        cells, orders = [], ("", "")
        for metric in BY:
            before, after = committed(board, metric, column), changed(folder, name, metric, column)
            value, methods = tau(before, after)
            cells.append("–" if value is None else f"{value:.2f}")
            if metric == "fid":
                orders = (" < ".join(methods), " < ".join(sorted(methods, key=lambda m: (after[m], m))))
        made.add_row(column.test, *cells, *orders)
    return made


def run(rules: protocol.Protocol, overrides: list[str], beside: str, out: Path) -> Printed:
    """The table of the records that are asked for.

    Raises:
        UserError: neither overrides nor another protocol, or both; or there are no records.
    """
    if bool(overrides) == bool(beside):
        raise UserError("give the overrides of a custom run, such as core.width=192, or another protocol with --beside")
    if beside:
        other, folder, told = protocol.load(beside), record.FOLDER, f"of {beside}"
    else:
        other, told = protocol.load(rules.source, overrides), f"with {' '.join(overrides)}"
        folder = records_folder(other, Run(out=out))
    if not (folder / other.name).is_dir():
        raise UserError(f"no records {told} in {folder}: run `make sweep PROTOCOL={other.name}` first")
    return compare(rules, folder, other.name, told)


def spreads(board: Table) -> Printed:
    """By measure: the slope of log standard deviation over log value, over rows with three seeds or more in every cell.

    1 is a spread in proportion to the value, 0 one that does not depend on it.
    """
    made = Printed("measure", "slope", "cells", title=f"Spread over seeds against the value, {board.protocol.name}")
    for metric in board.metrics:
        found = [row.entries[metric, column] for row in board.rows for column in board.columns if not column.is_mean]
        known = [
            (item.value, item.spread) for item in found if len(item.by_seed) >= table.ENOUGH and item.spread and item.value > 0
        ]
        if len({value for value, _ in known}) >= FEWEST:
            slope, _ = np.polyfit(*np.log(known).T, 1)
            made.add_row(METRICS[metric].title, f"{slope:.1f}", str(len(known)))
    return made


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.measure.stability", description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", help="those of a custom run, such as core.width=192")
    parser.add_argument("--beside", default="", help="another protocol with committed records, instead of a custom run")
    parser.add_argument("--protocol", default="shapes-long")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--spread", action="store_true", help="the spread over seeds against the value, and nothing else")
    given = parser.parse_args(arguments)

    def show() -> None:
        rules = protocol.load(given.protocol)
        if given.spread and (given.overrides or given.beside):
            raise UserError("--spread compares nothing: leave out the overrides and --beside")
        made = (
            spreads(table.build(rules, record.read_all()))
            if given.spread
            else run(rules, given.overrides, given.beside, given.out)
        )
        Console().print(made)

    return exit_code(show)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
