"""How long `make leaderboards` takes with many records: `python -m benchmark.measure.leaderboards [count]`, 2,000 by default.

The committed records are copied with further seeds, protocol by protocol in the committed shares, until there are `count`.
A record is written as it is read, so the copies are as large as the real ones; they are never part of a table.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmark.board import generate
from benchmark.files import exit_code
from benchmark.results import record


def copies(folder: Path, count: int) -> int:
    """Writes `count` records below `folder`, and returns how many protocols they belong to."""
    values = [json.loads(path.read_text()) for path in sorted(record.FOLDER.rglob("*.json"))]
    for place in range(count):
        value = values[place % len(values)]
        record.write({**value, "seed": value["seed"] + 10 * (place // len(values))}, folder)
    return len({value["protocol"]["name"] for value in values})


def measure(count: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "leaderboards"
        protocols = copies(out / "records", count)
        for name in ("notes", "grids"):
            shutil.copytree(generate.FOLDER / name, out / name)
        start = time.perf_counter()
        written = generate.generate(out / "records", out)
        taken = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        torch = "with" if "torch" in sys.modules else "without"
        print(f"{count} records, {protocols} protocols: {len(written)} files in {taken:.1f} s {torch} torch, peak {peak:.2f} GiB")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.measure.leaderboards", description=__doc__.partition(":")[0])
    parser.add_argument("count", nargs="?", type=int, default=2000, help="how many records (default: %(default)s)")
    count = parser.parse_args(arguments).count
    return exit_code(lambda: measure(count))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
