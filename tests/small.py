"""A protocol of a few thousand weights, and inputs that no version of torch can change (numpy's Philox)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmark.data.batches import Reader
from benchmark.data.index import Index
from benchmark.model.method import Method
from benchmark.protocol import Core, Objective, Protocol, Sample, Switches, Train, size_hw

CELLS = {"16x24": ["16x24", "32x48", "24x20", "4x4", "4x24", "48x48"]}  # 4 x 6 tokens, at most 12 x 12


def protocol(cells: dict[str, list[str]] | None = None, **sections: Any) -> Protocol:
    """A tiny protocol; a keyword such as core={"depth": 4} changes fields of that section."""
    core = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "channels": 3, "classes": 4, "rope_base": 100.0}
    return Protocol(
        name="small",
        title="Small",
        cells=cells or CELLS,
        core=Core(**core | sections.pop("core", {})),
        objective=Objective(**sections.pop("objective", {})),
        train=Train(**{"steps": 20, "batch": 4, "lr": 1e-3} | sections.pop("train", {})),
        sample=Sample(**{"steps": 3, "guidance": 2.0, "count": 4, "batch": 4} | sections.pop("sample", {})),
        switches=Switches(**sections.pop("switches", {})),
        options=sections.pop("options", {}),
        **sections,
    )


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers, the same on every machine."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32))


def fill(module: torch.nn.Module, scale: float = 0.1, seed: int = 0) -> torch.nn.Module:
    """Replaces every weight by normal numbers times `scale`, so that no gate is closed; returns the module."""
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(module.named_parameters())):
            parameter.copy_(scale * normal(1000 * seed + index, *parameter.shape))
    return module


def batch(protocol: Protocol, train: str, step: int, count: int = 4) -> dict[str, Any]:
    """A batch as the reader hands it over."""
    height, width = size_hw(train)
    image = normal(10_000 + step, count, protocol.core.channels, *protocol.latent_hw(train)).clamp(-1, 1)
    crop = torch.tensor([[1.25 * height, 1.25 * width, 2, 3, height, width]] * count)
    label = torch.arange(count) % protocol.core.classes
    return {"image": image, "label": label, "crop": crop, "key": [str(i) for i in range(count)], "step": step,
            "rows": (0, count)}  # fmt: skip


def reader(
    index: Index,
    protocol: Protocol,
    train: str,
    start: int = 0,
    seed: int = 0,
    augmentation: tuple[str, dict[str, Any]] = ("center_crop", {}),
    rank: int = 0,
    world: int = 1,
) -> Reader:
    """What one rank of a training reads, of a method with an augmentation."""
    trainer = SimpleNamespace(global_rank=rank, world_size=world)
    method = SimpleNamespace(
        protocol=protocol, train_size=train, augmentation=augmentation, seed=seed, device=torch.device("cpu"), trainer=trainer
    )
    return Reader(method, index, start, workers=0)


def loss(method: Method, step: int = 0, count: int = 4, **changes: Any) -> torch.Tensor:
    """The training loss of one step on `batch`."""
    return method.loss(batch(method.protocol, method.train_size, step, count) | changes)


def manifest(fingerprint: str, **more: Any) -> dict[str, Any]:
    """The manifest of a folder of shards with ten samples, as the writer makes it; `more` replaces or adds fields."""
    shard = {"name": "train-000000.tar", "count": 10, "bytes": 5000, "sha256": "a" * 64}
    return {
        "format": 1, "kind": "images", "card": "shapes", "classes": 8, "class_names": None, "count": 10, "samples": 10,
        "failures": [], "fingerprint": fingerprint, "index": "b" * 64, "shards": [shard], "scale": 1.0, "shift": 0.0, **more,
    }  # fmt: skip
