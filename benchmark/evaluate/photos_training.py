"""Training of the photos detector to predict classes, and how blurred, noisy or disordered an image is.

    python -m benchmark detector --name photos --data FOLDER [--card own] --out FILE

FOLDER has train/ and val/, with a folder for each class, or is what another card describes. The validation pictures are never
trained on; the accuracy that the file states is theirs. Two thirds of the steps see pictures of 40 pixels, which costs two
fifths; the others see 64. The shipped file was made of Tiny-ImageNet and names the command that this module is itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from benchmark import progress
from benchmark.data.batches import Batches, Transform
from benchmark.data.card import load_card
from benchmark.data.index import Index
from benchmark.data.sources import source
from benchmark.data.writer import prepare
from benchmark.evaluate import photos
from benchmark.evaluate.classifier import displaced
from benchmark.files import UserError, atomic
from benchmark.protocol import size_hw

CARD = "imagenet-64"
SIZES = ("24x24", "32x32", "48x48", "64x64", "32x64", "64x32")  # where the accuracy is stated
STEPS, BATCH, RATE = 4800, 64, 2e-3
EARLY, EARLY_SIDE = 2 / 3, 40  # the share of steps that see pictures of fewer pixels
DEGREES = ("blur", "noise", "disorder")  # of corruption, each 0 to 1
TESTED = 100  # pictures of a batch in `measure`, which leaves the rest out
HIT = 0.12  # the share of pictures that each way of corruption hits


def train(data: Path | str, out: Path | str = photos.WEIGHTS, runs: Path = Path("runs"), steps: int = STEPS, seed: int = 0,
          report: Callable[[int, float], None] = lambda step, loss: None, card: str = CARD) -> dict:  # fmt: skip
    """Trains the detector, measures it on the validation pictures and writes the weights, float16, with what was measured.

    Args:
        data: the pictures, which have a validation split.
        out: the file to write.
        runs: where shards are kept.
        steps: of `BATCH` pictures each.
        seed: of weights, order and corruptions.
        report: called after every step with the number of steps done and the loss.
        card: what the pictures are.

    Returns:
        What `photos.stated` will say of the file.

    Raises:
        UserError: there are no validation pictures, of other classes, or there is one class only.
    """
    seen, held_out = shards(data, runs, card)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, auxiliary = photos.Photos(seen.classes), _Auxiliary()
    model.to(memory_format=torch.channels_last)
    parameters = [*model.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, pct_start=0.15)
    for step, batch in zip(range(steps), _batches(seen, seed), strict=False):
        side = EARLY_SIDE if step < EARLY * steps else photos.SHORT_SIDE
        with torch.autocast("cpu", torch.bfloat16):
            loss = auxiliary(model, *batch, side)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step + 1, loss.item())
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    state = {key: value.contiguous() for key, value in state.items()}
    model.load_state_dict(state)  # measured as stored
    count = min(TESTED, len(held_out))
    said = {
        "command": f"python -m benchmark detector --name photos --card {card} --data DATA --steps {steps} --seed {seed}",
        "trained on": f"{len(seen)} pictures, {steps * min(BATCH, len(seen)) / len(seen):.1f} times",
        "tested on": f"{len(held_out) // count * count} pictures",
        "sizes": {size: measure(model.eval(), held_out, size) for size in SIZES},
    }
    with atomic(out) as draft:
        draft.write_bytes(save(state, {"posbench": json.dumps(said, sort_keys=True)}))
    return said


def shards(data: Path | str, runs: Path, name: str = CARD) -> tuple[Index, Index]:
    """The training and the validation pictures of a card, as shards below `runs`."""
    card = load_card(name)
    other = dataclasses.replace(card, name=f"{card.name}-val", count=0)
    sources = source(card, data), source(other, data, "val")
    if sources[0].identity() == sources[1].identity():
        raise UserError(f"{data} has no val/ next to train/, which is needed to test the detector on held-out images")
    written = [prepare(one, pictures, runs / "data") for one, pictures in zip((card, other), sources, strict=True)]
    for each in written:
        progress.say(str(each))
    seen, held_out = (Index(each.folder) for each in written)
    if seen.manifest["class_names"] != held_out.manifest["class_names"]:
        raise UserError(f"{data}: the classes of val ({held_out.classes}) differ from those of train ({seen.classes})")
    if seen.classes < 2:
        raise UserError(f"{data} has one class; the photos detector needs at least two")
    return seen, held_out


@torch.no_grad()
def measure(model: photos.Photos, index: Index, size: str) -> dict[str, float]:
    """Shares of pictures whose class is the first, or among the first five, that the detector names."""
    first = five = 0
    count = min(TESTED, len(index))
    batches = Batches(index, count, transform=Transform(size_hw(size), flip=False))
    steps = len(index) // count
    for step in range(steps):
        batch = batches[step]
        named = model(_uint8(batch["image"]))["logits"].topk(min(5, index.classes), dim=1).indices
        right = named == batch["label"][:, None]
        first += int(right[:, 0].sum())
        five += int(right.any(1).sum())
    return {"top1": round(first / (steps * count), 4), "top5": round(five / (steps * count), 4)}


class _Auxiliary(nn.Module):
    """The training loss, with the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.degrees = nn.Linear(photos.FEATURES, len(DEGREES))
        self.colours = nn.Linear(photos.FEATURES, 6)  # mean and deviation of R, G, B
        self.where = nn.Conv2d(photos.SPATIAL_CHANNELS, 3 * 4, 1)  # a small picture, 2 x 2 pixels a cell

    def forward(self, model: photos.Photos, images: Tensor, target: Tensor, degrees: Tensor, side: int) -> Tensor:
        """Loss of pictures [B, 3, h, w] with class probabilities [B, C] and degrees [B, 3], seen at `side` pixels."""
        middle = model.look(images, side)
        features, layout = model.features(middle), model.layout(middle)
        picture = images.float() / 127.5 - 1
        colours = torch.cat([picture.mean((2, 3)), picture.std((2, 3))], 1)
        small = F.interpolate(picture, [2 * length for length in layout.shape[-2:]], mode="bilinear", antialias=True)
        return (
            F.cross_entropy(model.head(features).float(), target, label_smoothing=0.1)
            + 2.0 * F.mse_loss(self.degrees(features).float(), degrees)
            + 1.0 * F.mse_loss(self.colours(features).float(), colours)
            + 1.0 * F.mse_loss(F.pixel_shuffle(self.where(layout), 2).float(), small)
        )


def _batches(index: Index, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless training batches of 64 x 64 pixels, mirrored and shifted; a third of them were smaller before."""
    rng = np.random.Generator(np.random.Philox(seed))
    batches = Batches(index, min(BATCH, len(index)), seed, transform=Transform((64, 64)))
    step = 0
    while True:
        batch = batches[step]
        step += 1
        top, left = rng.integers(0, 9, 2)
        x = F.pad(batch["image"], [4] * 4, mode="reflect")[:, :, top : top + 64, left : left + 64]
        if rng.random() < 1 / 3:
            small = int(rng.choice((24, 32, 48)))
            x = F.interpolate(x, (small, small), mode="bilinear", antialias=True)
        target = F.one_hot(batch["label"], index.classes).float()
        yield _corrupt(127.5 * (x + 1), target, rng)


def _corrupt(x: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Spoils some pictures (values 0 to 255) in the ways of generators, each by a degree drawn from 0 to 1.

    Returns:
        pictures uint8, class probabilities (flatter where a picture is disordered), degrees [B, 3].
    """
    number, _, height, width = x.shape
    hit = rng.random((len(DEGREES), number)) < HIT
    degrees = torch.from_numpy(rng.random((len(DEGREES), number)) * hit).float()
    blurred, grainy, disordered = (torch.from_numpy(np.flatnonzero(rows)) for rows in hit)
    blur, noise, disorder = (degree[rows].view(-1, 1, 1, 1) for degree, rows in
                             zip(degrees, (blurred, grainy, disordered), strict=True))  # fmt: skip
    x, target = x.contiguous(), target.clone()

    torn = torch.from_numpy(rng.random(len(disordered)) < 0.5).view(-1, 1, 1, 1)
    x[disordered] = torch.where(torn, _torn(x[disordered], disorder, rng), displaced(x[disordered], disorder, rng))
    target[disordered] = torch.lerp(target[disordered], torch.tensor(1 / target.shape[1]), 0.7 * disorder.view(-1, 1))

    radius, soft = max(1, round(min(height, width) / 16)), x[blurred]
    for _ in range(2):
        soft = F.avg_pool2d(F.pad(soft, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)
    x[blurred] = torch.lerp(x[blurred], soft, blur)

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    grain = torch.randn((len(grainy), 3, height, width), generator=generator)
    blobs = 1.5 * F.interpolate(grain[..., : height // 4, : width // 4], (height, width), mode="bilinear")
    coarse = torch.from_numpy(rng.random(len(grainy)) < 0.5).view(-1, 1, 1, 1)
    x[grainy] += 48 * noise * torch.where(coarse, blobs, grain)
    return x.round().clamp(0, 255).to(torch.uint8), target, degrees.T


def _torn(x: Tensor, degree: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, h, w] cut into 4 x 4 pieces, of which a share of `degree` [B, 1, 1, 1] change places."""
    places = np.tile(np.arange(16), (len(x), 1))
    for row, share in zip(places, degree.flatten().tolist(), strict=True):
        moved = np.flatnonzero(rng.random(16) < share)
        row[moved] = row[rng.permutation(moved)]
    pieces = x.unflatten(3, (4, -1)).unflatten(2, (4, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, 16, 3, h/4, w/4]
    pieces = pieces[torch.arange(len(x))[:, None], torch.from_numpy(places)]
    return pieces.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _uint8(image: Tensor) -> Tensor:
    """[-1, 1] -> 0 .. 255."""
    return (127.5 * (image + 1)).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="Tiny-ImageNet: the archive's folder, or one of parquet files")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=photos.WEIGHTS)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where shards are kept")
    args = parser.parse_args()
    with progress.stage("photos detector", args.steps) as stage:
        said = train(args.data, args.out, args.runs, args.steps, args.seed,
                     lambda done, loss: stage.set(done, f"loss {loss:.3f}"))  # fmt: skip
    progress.say(json.dumps(said, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
