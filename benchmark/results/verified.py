"""Verified rows, listed in leaderboards/verified.yaml with entries printed by `reproduce`.

    shapes-long:
      yarn:
        - {seed: 0, by: Ada Lovelace, hardware: NVIDIA A100, verdict: reproduced, row: "0123456789ab"}

`row` is the hash of the committed scores that were held against those of the other run: an entry says nothing of later ones.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from benchmark.files import UserError, digest, unknown
from benchmark.inputs import STRICT, matching, parsed, read_yaml
from benchmark.results.record import Record
from benchmark.results.schema import Hash, Natural, Title

NAME = "verified.yaml"  # beside the records' folder
VERDICTS = IDENTICAL, REPRODUCED, SPREAD = "identical", "reproduced", "within the seeds' spread"
PLACEHOLDER = "?"  # what `reproduce` prints for the name

Who = Annotated[str, matching(r"@?\w[\w .'@-]*", "a name", 80)]
Verdict = Annotated[str, matching("|".join(VERDICTS), f"{', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}")]


@dataclass(frozen=True)
class Entry:
    """Who has run a seed of a row again, on what, and how that compared."""

    __pydantic_config__ = STRICT

    seed: Natural
    by: Who
    hardware: Title
    verdict: Verdict
    row: Hash


@functools.cache
def _model() -> pydantic.TypeAdapter[dict[str, dict[str, list[Entry]]]]:
    return pydantic.TypeAdapter(dict[str, dict[str, list[Entry]]])


def row_hash(records: Iterable[Record]) -> str:
    """The hash of what the records of a row with one seed say: the same where they hold the same scores."""
    return digest(sorted([*item.pair, item.value["protocol"]["hash"], item.scores] for item in records))


def read(path: Path, records: Sequence[Record], left_out: Collection[tuple[str, str]] = ()) -> dict[tuple[str, str], list[Entry]]:
    """The entries by (protocol, method); none where there is no file.

    Args:
        records: all that are committed, which the entries are held against.
        left_out: rows whose entries do not count, since other records stand in them.

    Raises:
        UserError: an entry of a row that is not there, or whose scores are others by now.
    """
    if not path.is_file():
        return {}
    listed = parsed(_model(), read_yaml(path), str(path), tuple(Entry.__dataclass_fields__))
    rows: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for item in records:
        rows.setdefault((item.protocol, item.method), {}).setdefault(item.seed, []).append(item)
    found = {}
    for protocol, methods in listed.items():
        there = {method for name, method in rows if name == protocol}
        if not there:
            raise UserError(f"{path}: {unknown('protocol', protocol, {name for name, _ in rows})}")
        for method, entries in methods.items():
            if (protocol, method) in left_out:
                continue
            seeds = rows.get((protocol, method))
            if seeds is None:
                raise UserError(f"{path}: {unknown(f'row of {protocol}', method, there)}")
            for entry in entries:
                where = f"{path}: {protocol}, {method}, seed {entry.seed}"
                if entry.seed not in seeds:
                    raise UserError(f"{where} has no records (there are records of seed {', '.join(map(str, sorted(seeds)))})")
                if entry.row != (now := row_hash(seeds[entry.seed])):
                    raise UserError(
                        f"{where}: {entry.by} ran the row {entry.row}, which has since become {now}; remove the entry"
                    )
            found[protocol, method] = entries
    return found


def entry_text(records: Sequence[Record], hardware: str, verdict: str) -> str:
    """The entry of a row with one seed, as the file has it, but for the name.

    Args:
        records: the committed ones that were reproduced.
        hardware: on which they were.
    """
    first = records[0]
    fields = {"seed": first.seed, "by": PLACEHOLDER, "hardware": hardware, "verdict": verdict, "row": row_hash(records)}
    inside = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
    return f"{first.protocol}:\n  {first.method}:\n    - {{{inside}}}\n"
