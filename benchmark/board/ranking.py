"""Rankings outside the leaderboards: the terminal table, and ranking changes for a pull request."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import rich.table
from rich import box
from rich.text import Text

from benchmark import protocol
from benchmark.board import table
from benchmark.board.grid import FAILED, NOT_RUN, decimals, escape, number, shown
from benchmark.files import UserError
from benchmark.protocol import Protocol
from benchmark.results import record
from benchmark.results.record import Record

NAME = 12  # characters of a method's name that stay in one line, however many columns follow


def rich_table(rules: Protocol | str, records: Iterable[Record], new: Collection[str] = ()) -> rich.table.Table:
    """The compact table for a terminal of 80 columns: FID, its spread over seeds and IS below each other, best in bold.

    Args:
        rules: the protocol or its name; records of others are left out.
        new: methods with records of this run, whose rows say so.
    """
    rules = protocol.load(rules) if isinstance(rules, str) else rules
    board = table.build(rules, records)
    for row in board.rows:
        row.new = row.method in new
    used = "".join(row.marks for row in board.rows)
    legend = "; ".join(f"{mark} {meaning.partition(':')[0]}" for mark, meaning in table.MARKS.items() if mark in used)
    if rules.rehearses:
        legend = f"a rehearsal of {rules.rehearses}: its ranking is only indicative{'; ' if legend else ''}{legend}"
    trained = {column.train for column in board.columns if not column.is_mean}
    where = f", trained at {min(trained)}" if len(trained) == 1 else ""
    made = rich.table.Table(
        title=Text(f"{rules.name}: FID ↓ (IS ↑ below), N = {rules.sample.count:,}{where}, protocol {rules.hash}"),
        caption=Text(legend) if legend else None, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    made.add_column("Method", overflow="fold", min_width=min(NAME, max((len(row.title) for row in board.rows), default=0)))
    for column in board.columns:
        words = column.words
        if not column.is_mean:
            sizes = _stacked(column.test) if where else [f"{column.train} →", column.test]
            words = [*sizes, *textwrap.wrap(column.ratio_label, 6)]
        made.add_column(Text("\n".join(words)), justify="right", no_wrap=True)
    entries = {metric: [row.entries[metric, c] for row in board.rows for c in board.columns] for metric in board.metrics}
    places = {metric: decimals(entry.value for entry in items) for metric, items in entries.items()}
    for row in board.rows:
        name = Text(f"{row.title} {row.marks}".rstrip())
        cells = [name] if not row.new else [Text(str(name).removesuffix(" new")).append("\nnew", "bold green")]
        for column in board.columns:
            lines = []
            for metric, style in (("fid", ""), ("is", "dim")):
                entry = row.entries[metric, column]
                lines.append(Text(shown(entry, places[metric]).text, style=f"{style} bold" if entry.best else style))
                if entry.spread is not None and metric == "fid":
                    lines.append(Text(f"± {number(entry.spread, 1)}"))
            cells.append(Text("\n").join(lines[:1] if str(lines[0]) in (FAILED, NOT_RUN) else lines))
        made.add_row(*cells)
    return made


def _stacked(size: str) -> list[str]:
    """A size in lines of at most six characters, as wide as the numbers below it: nine columns fit a terminal."""
    height, width = size.split("x")
    return [size] if len(size) <= 6 else [f"{height}x", width]


Ranks = dict[str, tuple[int, float]]  # method -> (rank, mean FID beyond) of the complete rows


def _ranking(records: Sequence[Record], name: str) -> tuple[Ranks, dict[str, table.Row]]:
    """The ranks of the complete rows, and all rows by method."""
    board = table.build(protocol.load(name), records)
    rows = {row.method: row for row in board.rows}
    ranks = board.ranks("fid")
    return {method: (rank, rows[method].entries["fid", board.headline].value) for method, rank in ranks.items()}, rows


def ranking_changes(old_folder: Path | str, new_folder: Path | str) -> str:
    """What a change of records does to the rankings, as a block of markdown for a comment.

    Args:
        old_folder, new_folder: folders of records before and after. Old records that today's protocols refuse are said to
            be so; new ones that are refused raise.

    Raises:
        UserError: a new record is refused.
    """
    new = record.read_all(new_folder)
    lines = ["### Changes in the rankings", ""]
    try:
        old = record.read_all(old_folder) if Path(old_folder).is_dir() else []
    except UserError as error:
        old = []
        lines += [f"The earlier records cannot be compared: {escape(str(error))}", ""]
    before = {record.location(item.value): item.value for item in old}
    after = {record.location(item.value): item.value for item in new}
    added, removed = sorted(set(after) - set(before)), sorted(set(before) - set(after))
    edited = sorted(path for path in set(before) & set(after) if before[path] != after[path])
    changed = [*added, *removed, *edited]
    if not changed:
        return "\n".join([*lines, "None: the records are the same."]) + "\n"
    lines += [f"Records: {len(added)} new, {len(edited)} changed, {len(removed)} removed.", ""]
    for name in sorted({path.parts[0] for path in changed}):
        (ranks_before, rows_before), (ranks_after, rows_after) = _ranking(old, name), _ranking(new, name)
        lines += [f"**`{name}`**, by mean FID beyond the training size (lower is better)", ""]
        lines += ["| Method | Rank before | Rank now | FID before | FID now |", "| --- | ---: | ---: | ---: | ---: |"]
        for method in sorted({*rows_before, *rows_after}, key=lambda key: (ranks_after.get(key, (10**6, 0))[0], key)):
            touched = any(path.parts[:2] == (name, method) for path in changed)
            if touched or ranks_before.get(method) != ranks_after.get(method):
                places = [_place(method, ranks_before, rows_before), _place(method, ranks_after, rows_after)]
                values = [f"{ranks[method][1]:.2f}" if method in ranks else NOT_RUN for ranks in (ranks_before, ranks_after)]
                lines.append(f"| `{method}` | {' | '.join([*places, *values])} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _place(method: str, ranks: Ranks, rows: dict[str, table.Row]) -> str:
    if method in ranks:
        return str(ranks[method][0])
    return f"incomplete ({rows[method].missing} missing)" if method in rows else "absent"
