"""Checks trained weights at every noise level: the denoising loss at 249 levels, and where it jumps.

    python -m benchmark.measure.levels rpe2d --seed 1

A training whose rate is too high can come to predict nonsense within a narrow band of levels, and there only: the sampler visits
a few levels and the denoising loss of a record is taken at eight, so FID and that loss may look sound. Looks at trainings under
OUT at their training size; ends with exit code 1 where a band is found.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmark import protocol, registry
from benchmark.evaluate import denoising
from benchmark.files import UserError, exit_code
from benchmark.identity import Cell
from benchmark.model.method import Method
from benchmark.plan.place import Run, device
from benchmark.run.loss import heldout_images
from benchmark.run.sample import built

LEVELS, IMAGES = 249, 16  # 0.004, 0.008, ... 0.996
AROUND, LEAP = 8, 2.0  # neighbours on either side; times their median that is a leap. A sound curve stays below 1.6


class Band(NamedTuple):
    """A run of noise levels at which the loss leaps, and the largest loss there."""

    low: float
    high: float
    loss: float


def curve(method: Method, size: str, data: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of images [N, C, h, w] at each level, [LEVELS], with the same noise at all of them."""
    noise, predict, found = denoising.noise_of(range(len(data)), 1, data), method.predictor(size), []
    with torch.inference_mode():
        for level in levels():
            velocity = predict(
                (1 - level) * data + level * noise, torch.full((len(data),), 1000 * level, device=data.device), labels
            )
            found.append((velocity.float() - (noise - data)).square().mean())
    return torch.stack(found).cpu()


def levels() -> list[float]:
    return [(number + 1) / (LEVELS + 1) for number in range(LEVELS)]


def leaps(losses: Tensor) -> list[Band]:
    """The bands in which the loss [LEVELS] is above LEAP times the median of its surroundings."""
    padded = torch.cat([losses[1 : AROUND + 1].flip(0), losses, losses[-AROUND - 1 : -1].flip(0)])
    high = ~(losses <= LEAP * padded.unfold(0, 2 * AROUND + 1, 1).nanmedian(-1).values)  # also where it is not a number
    bands: list[Band] = []
    for level, loss, leaping, before in zip(levels(), losses.tolist(), high, [False, *high[:-1]], strict=True):
        if leaping and before:
            bands[-1] = Band(bands[-1].low, level, loss if math.isnan(loss) else max(bands[-1].loss, loss))
        elif leaping:
            bands.append(Band(level, level, loss))
    return bands


def look(names: list[str], rules: protocol.Protocol, seed: int, run: Run) -> tuple[Table, bool]:
    """The table of the bands of some methods, and whether there are any."""
    shown, found = Table("method", "size", "levels", "largest loss", title="where the loss leaps"), False
    for name in map(registry.check, names):
        for size in rules.cells:
            images = heldout_images(rules, size, run, device(), IMAGES)
            method = built(Cell(rules, name, size, size, seed), run).to(images.data.device)
            bands = leaps(curve(method, size, images.data, images.labels))
            found |= bool(bands)
            for low, high, loss in bands:
                shown.add_row(name, size, f"{low:.3f} to {high:.3f}", f"{loss:.4g}")
            if not bands:
                shown.add_row(name, size, "nowhere", "")
    return shown, found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.measure.levels", description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--protocol", default="shapes-long")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE", help="of a custom run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args(arguments)
    found = False

    def work() -> None:
        nonlocal found
        rules = protocol.load(given.protocol, given.overrides)
        if rules.objective.name != "flow":
            raise UserError(f"{rules.name} is not trained with flow matching, whose velocity is measured here")
        shown, found = look(given.methods, rules, given.seed, Run(given.out))
        Console().print(shown)

    return exit_code(work) or int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
