"""Real scenes shown with the samples, for data sets rendered at every size; leaderboards contain no photographs.

A picture is laid out as the kept grids of samples are (run/boards.py): two rows, a class a column where there are eight.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
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
    buffer = io.BytesIO()
    sheet(list(shapes.render_batch("reference", range(ROWS * COLUMNS), size_hw(size)))).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sheet(images: Sequence[np.ndarray]) -> Image.Image:
    """Images uint8 [H, W, 3] in rows of COLUMNS. A column is a class where eight classes take turns."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // COLUMNS)
    pixels = np.full((rows * (height + GAP) - GAP, COLUMNS * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = (number // COLUMNS) * (height + GAP), (number % COLUMNS) * (width + GAP)
        pixels[y : y + height, x : x + width] = image
    return Image.fromarray(pixels)


def is_same(path: Path, content: bytes) -> bool:
    """Whether a file shows a picture, pixel by pixel: compressors of other machines make other bytes of the same pixels."""
    try:
        with Image.open(path) as there, Image.open(io.BytesIO(content)) as wanted:
            return there.mode == wanted.mode and np.array_equal(np.asarray(there), np.asarray(wanted))
    except (OSError, SyntaxError, ValueError):  # cut short, or no picture
        return False
