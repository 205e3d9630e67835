"""The image at the top of the README: real scenes, then methods at twice the training size, from the committed sample grids.

    python -m benchmark.measure.teaser interpolation rpe2d ...

A row is a class, and all methods start from the same noise there: image i of every grid has the seed and the label of image i.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmark import progress, protocol, registry, streams
from benchmark.board import real
from benchmark.board.view import picture
from benchmark.data import shapes
from benchmark.files import ROOT, UserError, atomic, exit_code
from benchmark.protocol import size_hw

FOLDER = ROOT / "leaderboards"
FILE = FOLDER / "teaser.webp"
PROTOCOL, TRAIN, TEST, SEED = "shapes-28k", "32x32", "64x64", 0
IMAGES = (0, 3, 4, 5)  # of a grid, whose image i is of class i: a disc, a star, a ring and a cross, of even and of thin parts
SCALE, GAP, LABEL = 2, 8, 48  # screen pixels of one of an image's, between columns, and of a label


def samples(method: str) -> list[np.ndarray]:
    """Images of a method's committed grid, uint8 [h, w, 3]."""
    name, grids = f"{PROTOCOL}/{method}/{TRAIN}-{TEST}-s{SEED}", FOLDER / "grids"
    if not (path := picture(grids, name)):
        raise UserError(f"{grids / name} does not exist: the image is made from committed sample grids")
    with Image.open(grids / path) as sheet:
        whole = np.asarray(sheet.convert("RGB"))
    height, width = size_hw(TEST)
    return [whole[:height, k * (width + real.GAP) : k * (width + real.GAP) + width] for k in IMAGES]


def draw(methods: list[str], path: Path = FILE) -> Path:
    """Writes the picture: a column of real scenes, then one for every method."""
    height, width = (SCALE * side for side in size_hw(TEST))
    asked = streams.labels(protocol.load(PROTOCOL).sample.labels, SEED, IMAGES, len(shapes.CLASSES))
    scenes = list(shapes.render_batch("reference", asked.tolist(), size_hw(TEST)))  # scene k < 8 is the first of class k
    columns = [("Real scenes", scenes)] + [(registry.about(name).title, samples(name)) for name in methods]
    sheet = Image.new("RGB", (len(columns) * (width + GAP), LABEL + len(IMAGES) * (height + 2)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for place, (title, images) in enumerate(columns):
        x = place * (width + GAP) + (GAP if place else 0)  # the real ones stand apart
        pen.multiline_text(
            (x + width // 2, LABEL // 2), "\n".join(textwrap.wrap(title, 13)), "black", font, anchor="mm", align="center"
        )
        for row, image in enumerate(images):
            large = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (x, LABEL + row * (height + 2)))
    with atomic(path) as draft:
        sheet.save(draft, format="WEBP", lossless=True, method=6)
    return path


def main(methods: list[str]) -> int:
    """Draws the methods that are named, or else the protocol's."""
    return exit_code(
        lambda: progress.say(str(draw([registry.check(name) for name in methods] or list(protocol.load(PROTOCOL).methods))))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
