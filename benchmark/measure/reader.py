"""Measures the reader against webdataset's own plain pipeline: same shards, decoder and process, alternating.

    python -m benchmark.measure.reader [FOLDER] [--size 256x256] [--batch 64] [--rounds 5]

FOLDER holds shards, such as runs/data/shapes-* with --size 32x32. Without it, drawn scenes of ImageNet's usual size are
written as JPEGs. The first batch of a set of 1,000 shards is timed as well. Not a test: its figures depend on the machine.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from benchmark.data import shapes
from benchmark.data.batches import Batches, Transform
from benchmark.data.card import Card
from benchmark.data.images import center_crop
from benchmark.data.index import Index
from benchmark.data.writer import prepare
from benchmark.files import UserError, exit_code
from benchmark.model import checkpoint
from benchmark.model.flops import DEVICES, forward_flops
from benchmark.protocol import Core as CoreConfig
from benchmark.protocol import size_hw


def photos(root: Path, count: int = 400) -> Path:
    """Drawn scenes of 375 x 500 pixels with grain, as JPEGs in class folders: as costly to decode as ImageNet's files."""
    rng = np.random.default_rng(0)
    for number in range(count):
        scene = shapes.render("train", number, (375, 500)).astype(int) + rng.integers(-12, 13, (375, 500, 1))
        path = root / f"{shapes.label('train', number)}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return prepare(Card("photos", "folder"), root, root.parent, per_shard=100).folder


def plain(folder: Path, size: tuple[int, int], batch: int) -> float:
    """webdataset as its documentation shows it: samples per second."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))

    def ready(image: Image.Image) -> torch.Tensor:
        array = np.asarray(center_crop(image, size))
        return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)

    pipeline = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .shuffle(100)
        .decode("pilrgb")
        .to_tuple("jpg;png", "cls")
        .map_tuple(ready, int)
        .batched(batch, partial=False)
    )
    start, count = time.process_time(), 0
    for images, _ in pipeline:
        count += len(images)
    return count / (time.process_time() - start)


def ours(folder: Path, size: tuple[int, int], batch: int) -> tuple[float, float]:
    """Samples per second in the first epoch, and in the third, when nearly all pictures that fit into memory are there."""
    batches = Batches(Index(folder), batch, transform=Transform(size, flip=False))
    found = []
    for epoch in range(3):  # every epoch drops another rest
        start = time.process_time()
        for step in range(batches.epoch_steps):
            batches[epoch * batches.epoch_steps + step]
        found.append(batches.epoch_steps * batch / (time.process_time() - start))
    return found[0], found[-1]


def appetite(model: str) -> float:
    """Images per second that an H100 trains on at the assumed share of its peak, 256 tokens each."""
    depth, width, heads = checkpoint.SIZES[model]
    core = CoreConfig(width=width, depth=depth, heads=heads, patch=2, channels=4, classes=1000)
    device = DEVICES["h100"]
    return device.efficiency * device.bf16 * 1e12 / (3 * forward_flops(core, 2, (16, 16)))


def first_batch(root: Path) -> float:
    """Seconds from nothing to the first batch of 1,000 shards (of 100 small pictures each)."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "PNG")
    folder = root / "small"
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(10_000):
            (folder / str(label) / f"{number}.png").write_bytes(stream.getvalue())
    found = prepare(Card("small", "folder"), folder, root, per_shard=100).folder
    start = time.perf_counter()
    Batches(Index(found), 256, transform=Transform((16, 16)))[0]
    return time.perf_counter() - start


def measure(folder: Path | None, size_name: str, batch: int, rounds: int) -> None:
    size = size_hw(size_name)
    if rounds < 1 or batch < 1:
        raise UserError(f"--rounds {rounds} and --batch {batch}: both are at least 1")
    with tempfile.TemporaryDirectory() as root:
        folder = folder or photos(Path(root) / "photos")
        figures = [(plain(folder, size, batch), *ours(folder, size, batch)) for _ in range(rounds + 1)][1:]
        theirs, mine, later = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"webdataset {theirs:.0f}/s, this reader {mine:.0f}/s per second of processor time: {mine / theirs:.2f} times")
        print(f"in the third epoch {later:.0f}/s: {later / mine:.1f} times its first")
        for model in ("S", "XL"):
            needed = appetite(model)
            print(f"an H100 on DiT-{model}/2 and 256 tokens takes {needed:,.0f}/s: a core feeds {mine / needed:.0%}")
        print(f"first batch of 1,000 shards: {first_batch(Path(root)):.2f} s")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.measure.reader", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    return exit_code(lambda: measure(args.folder, args.size, args.batch, args.rounds))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
