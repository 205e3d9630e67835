"""File names in the folders of a training and of a cell."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS, REPORT, CHECKPOINTS = "weights.safetensors", "training.json", "checkpoints"  # of a training
DONE, CHUNKS, GRID = "samples.json", "chunks", "grid.png"  # of a cell: its images are all made; those that stay; the first
KEPT_IMAGES = 512  # of a cell that stay without `--keep`, for grids


def is_trained(folder: Path) -> bool:
    """Whether a training is done: both of its files are there."""
    return all((folder / name).is_file() for name in (WEIGHTS, REPORT))


def step_of(path: Path) -> int:
    """The step of a checkpoint, which its name says."""
    return int(re.findall(r"\d+", path.name)[0])


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a training's folder of them, the latest step first."""
    return sorted(folder.glob("step=*.ckpt"), key=step_of, reverse=True)
