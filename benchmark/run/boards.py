"""The last stage: a run's own leaderboard beside its records, and submitting a row to the committed ones."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from benchmark.board import generate, ranking
from benchmark.files import ROOT, UserError, atomic
from benchmark.identity import cells_of
from benchmark.plan.place import Run
from benchmark.plan.stages import Sample, graph, records_folder
from benchmark.protocol import Protocol, size_hw
from benchmark.results import record

BOARDS = ROOT / "leaderboards"
GRID, GRID_GAP = "grid.png", 2
KEPT_ROWS = 2  # of a grid of samples, beside the records


def board(protocol: Protocol, run: Run) -> list[Path]:
    """Makes the leaderboards of a run under OUT: the committed records with the run's own in their place or beside them.

    Custom runs and protocols that are not ranked have no board: their records belong to no committed table.

    Returns:
        the files that were written.
    """
    if protocol.custom or not protocol.ranked:
        return []
    target = run.out / "leaderboards"
    for folder in ("records", "grids", "notes"):
        if (BOARDS / folder).is_dir():
            shutil.copytree(BOARDS / folder, target / folder, dirs_exist_ok=True)
    shutil.copytree(records_folder(protocol, run), target / "records", dirs_exist_ok=True)
    return generate.generate(target / "records", target)


def keep_grids(protocol: Protocol, method: str, seed: int, run: Run, target: Path) -> list[Path]:
    """Puts the first rows of each cell's grid below a folder of leaderboards, in 256 colours: an eighth of the bytes."""
    written = []
    for stage in graph(protocol, [method], seed, run):
        if not (isinstance(stage, Sample) and stage.is_complete()):
            continue
        source = stage.images / GRID
        path = target / "grids" / protocol.name / method / f"{stage.cell.train}-{stage.cell.test}-s{seed}.png"
        height = KEPT_ROWS * (size_hw(stage.cell.test)[0] + GRID_GAP) - GRID_GAP
        with Image.open(source) as sheet, atomic(path) as draft:
            rows = sheet.crop((0, 0, sheet.width, min(height, sheet.height)))
            few = rows.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(draft, format="PNG", optimize=True)
        written.append(path)
    return written


def submit(protocol: Protocol, method: str, seed: int, run: Run) -> tuple[list[Path], str]:
    """Copies a complete row of a ranked protocol from OUT into leaderboards/, with its grids, and regenerates them.

    Returns:
        (what was written, what that changes in the rankings as markdown).

    Raises:
        UserError: a custom run, a protocol that is not ranked, or a row that lacks a cell.
    """
    if protocol.custom or not protocol.ranked:
        kind = "a custom run" if protocol.custom else f"protocol '{protocol.name}', which is not ranked"
        raise UserError(f"records of {kind} belong to no leaderboard")
    source = records_folder(protocol, run)
    paths = [record.place(protocol.name, method, cell.train, cell.test, seed) for cell in cells_of(protocol, [method], seed)]
    missing = [path.name for path in paths if not (source / path).is_file()]
    if missing:
        lacks = f"lacks {len(missing)} of {len(paths)} cells in {source}"
        raise UserError(f"the row of {method} with seed {seed} {lacks}: run `make bench`")
    for path in paths:
        record.read(source / path, protocol)  # refused before anything is copied
    before = run.out / "before"
    shutil.copytree(BOARDS / "records", before, dirs_exist_ok=True)
    for path in paths:
        (BOARDS / "records" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, BOARDS / "records" / path)
    grids = keep_grids(protocol, method, seed, run, BOARDS)
    written = generate.generate()
    changes = ranking.ranking_changes(before, BOARDS / "records")
    shutil.rmtree(before)
    return [*(BOARDS / "records" / path for path in paths), *grids, *written], changes
