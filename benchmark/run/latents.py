"""The latents stage: encodes a protocol's images as shards of latents, once per training size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmark import progress
from benchmark.data import latents
from benchmark.data.card import autoencoder_of
from benchmark.data.index import Index
from benchmark.plan.dataset import DataSet
from benchmark.plan.place import Run, device
from benchmark.protocol import Protocol, size_hw
from benchmark.run.train import pictures


def make_latents(protocol: Protocol, run: Run, sizes: Iterable[str], batch: int = 16) -> list[Path]:
    """Writes what is missing of the latents of some training sizes, on all devices of this machine.

    Args:
        batch: pictures in a forward pass of the autoencoder.

    Returns:
        the folders of shards.
    """
    name = autoencoder_of(DataSet(protocol, run).card)
    index = Index(pictures(protocol, run, verbose=True))
    kind = device()
    places = [f"{kind}:{number}" if kind == "cuda" else kind for number in range(run.count)]
    folders = []
    for size in sizes:
        with progress.stage(f"latents {index.manifest['card']} {size}", len(index), "image") as stage:
            written = latents.prepare_latents(
                index, run.out / "data", name, size_hw(size), devices=places, batch=batch,
                progress=lambda done, _, stage=stage: stage.set(done),
            )  # fmt: skip
        progress.say(str(written))
        folders.append(written.folder)
    return folders
