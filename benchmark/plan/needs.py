"""Memory and disk that a stage needs, checked before anything is allocated; a one-line error if they are insufficient.

Estimates are deliberately low: a stage that is refused would certainly have failed. What does not fit all the same is caught
at the stage's edge (run/local.py).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmark.files import UserError
from benchmark.model.flops import OUTPUTS, parameters
from benchmark.plan.cost import show_bytes
from benchmark.plan.place import Run, gpus, torch
from benchmark.protocol import Protocol
from benchmark.registry import detector_facts

STATE = 20  # bytes a weight in training: float32 itself, gradient, average, and AdamW's two moments
TENSORS = 8  # of [tokens, width] in a block that the backward pass waits for, at least


def training(protocol: Protocol, size: str, run: Run) -> dict[str, float]:
    """Bytes of memory that one device of a training holds, by what holds them."""
    (h, w), core = protocol.grid(size), protocol.core
    weights = parameters(core, OUTPUTS[protocol.objective.name])
    rows = max(1, protocol.train.batch // (run.count * run.nodes))
    number = 2 if protocol.train.precision == "bf16" else 4
    return {
        "weights, optimizer and average": float(STATE * weights),
        f"the activations of {rows} images": float(rows) * h * w * core.width * core.depth * TENSORS * number,
    }


def sampling(protocol: Protocol, test: str) -> dict[str, float]:
    """Bytes of memory that one device of a sampling run holds."""
    (h, w), core = protocol.grid(test), protocol.core
    rows = protocol.sample.batch * (1 if protocol.sample.guidance == 1 else 2)
    return {
        "weights": 4.0 * parameters(core, OUTPUTS[protocol.objective.name]),
        f"the activations of {rows} images": float(rows) * h * w * core.width * 3 * 2,
    }


def reference(protocol: Protocol) -> dict[str, float]:
    """Bytes of memory that reference statistics hold."""
    score = protocol.score
    width = detector_facts(score.detector).numbers
    return {
        f"the features of {score.kept} images": 4.0 * width * score.kept,
        f"the order of {score.reference} images": 9.0 * score.reference,
    }


def check_memory(needed: dict[str, float], what: str) -> None:
    """Raises UserError where this machine has less memory than is needed."""
    total, there = sum(needed.values()), memory()
    if total > there:
        most = max(needed, key=needed.__getitem__)
        raise UserError(
            f"{what} needs about {show_bytes(total)} of memory, mostly for {most} ({show_bytes(needed[most])}); "
            f"this machine has {show_bytes(there)}"
        )


def check_disk(needed: float, what: str, folder: Path) -> None:
    """Raises UserError where the disk of a folder has less room than is needed."""
    there = folder.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{what} needs about {show_bytes(needed)} on disk, but {folder} has {show_bytes(free)} left")


def memory() -> float:
    """Bytes of a device's memory: of the first GPU where there is one, else of this machine, or of the share that we may use."""
    if gpus():
        # Not mem_get_info, which opens a context: every rank would hold one on the first GPU.
        return float(torch.cuda.get_device_properties(0).total_memory)
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, float(text))
    return total
