"""Real scenes shown with the samples, for data sets rendered at every size; leaderboards contain no photographs.

A picture is laid out as the kept grids of samples are (run/boards.py): two rows, a class a column where there are eight.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmark.data import shapes
from benchmark.data.card import load_card
from benchmark.protocol import Protocol, size_hw

FOLDER = "real"  # of grids/, once for all protocols: a rendered scene depends on its size alone; of grids/<protocol>/, for others
ROWS, COLUMNS, GAP = 2, 8, 2  # images, and pixels between them


def is_rendered(rules: Protocol) -> bool:
    """Whether a protocol's images come from a formula, at any size."""
    return load_card(rules.data.card).kind == "shapes"


def picture(size: str) -> bytes:
    """The first scenes of the reference at a test size, as PNG."""
    height, width = size_hw(size)
    sheet = np.full((ROWS * (height + GAP) - GAP, COLUMNS * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, scene in enumerate(shapes.render_batch("reference", range(ROWS * COLUMNS), (height, width))):
        y, x = (number // COLUMNS) * (height + GAP), (number % COLUMNS) * (width + GAP)
        sheet[y : y + height, x : x + width] = scene
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def is_same(path: Path, content: bytes) -> bool:
    """Whether a file shows a picture, pixel by pixel: compressors of other machines make other bytes of the same pixels."""
    try:
        with Image.open(path) as there, Image.open(io.BytesIO(content)) as wanted:
            return there.mode == wanted.mode and np.array_equal(np.asarray(there), np.asarray(wanted))
    except (OSError, SyntaxError, ValueError):  # cut short, or no picture
        return False
