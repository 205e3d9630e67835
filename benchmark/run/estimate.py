"""Run time estimates for the missing stages on this machine, from a one-second measurement before they start.

The core runs a few training steps and a few forwards as the protocol has them, which gives two speeds; the operations that the
stages count (plan/cost.py) over these speeds are the time. Reading, metrics and waiting are not in it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from benchmark import progress
from benchmark.files import listed
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding
from benchmark.model.flops import OUTPUTS, forward_flops, parameters, training_flops
from benchmark.model.method import Method
from benchmark.model.precision import autocast, has_bf16
from benchmark.plan.place import Run, device, gpus
from benchmark.plan.report import show_hours
from benchmark.plan.stages import Stage
from benchmark.protocol import Protocol, size_hw
from benchmark.results import record

SECONDS = 0.7  # of either measurement
LARGE = 50_000_000  # weights from which two blocks stand for all: the work of a block does not depend on their number
OPERATIONS = 2e11  # of a step, at most; more images than that are measured as fewer
VERBS = {"latents": "encode", "train": "train", "reference": "make references", "sample": "sample and extract features"}


@dataclass(frozen=True)
class Speed:
    """Operations a second of the core on this machine, all its threads or one of its GPUs at work."""

    training: float
    sampling: float


class Bare(Method):
    """The core with nothing added: what is timed."""

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        return Encoding()


def measure(protocol: Protocol, where: str) -> Speed:
    """Times the protocol's core at its first training size, with its batches."""
    size, outputs = next(iter(protocol.cells)), OUTPUTS[protocol.objective.name]
    if parameters(protocol.core, outputs) > LARGE:
        protocol = dataclasses.replace(protocol, core=dataclasses.replace(protocol.core, depth=2))
    forward = forward_flops(protocol.core, outputs, protocol.grid(size))
    most = max(1, int(OPERATIONS / training_flops(protocol, size)))
    images, sampled = min(protocol.train.batch, most), min(2 * protocol.sample.batch, 3 * most)  # guidance doubles a batch
    method = Bare(protocol, size).to(where)
    kind = torch.device(where)
    optimizer = method.optimizer()
    step = 0

    def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (count, protocol.core.channels, *protocol.latent_hw(size))
        return torch.zeros(shape, device=where), torch.zeros(count, dtype=torch.long, device=where)

    data, label = inputs(images)
    crop = torch.tensor([[*size_hw(size), 0, 0, *size_hw(size)]] * images, dtype=torch.float32, device=where)

    def train() -> None:
        nonlocal step
        batch = {"image": data, "label": label, "crop": crop, "step": step, "rows": (0, images)}
        with autocast(protocol.train.precision, kind):
            loss = method.training_step(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1

    noise, classes = inputs(sampled)
    encoding, at = method.encode(protocol.grid(size)), torch.full((sampled,), 500.0, device=where)

    def sample() -> None:
        with torch.inference_mode(), autocast(protocol.sample.precision, kind):
            method.predict(noise, at, classes, encoding, None)

    return Speed(training_flops(protocol, size) * images / seconds(train, where), forward * sampled / seconds(sample, where))


def measure_apart(protocol: Protocol) -> Speed:
    """`measure` in a process of its own: this one, which watches over those that train, keeps no hold on their GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, protocol, device()).result()


def seconds(work: Callable[[], None], where: str) -> float:
    """The mean time of a call, after one that warms up."""

    def wait() -> None:
        if where.startswith("cuda"):
            torch.cuda.synchronize()

    work()
    wait()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        work()
        wait()
        calls += 1
    return (time.perf_counter() - began) / calls


def hours(stages: Sequence[Stage], speed: Speed, devices: int) -> dict[str, float]:
    """Hours of what is missing by kind of stage."""
    found: dict[str, float] = {}
    for stage in stages:
        operations = stage.cost().operations
        rate = speed.training if stage.kind == "train" else speed.sampling
        if operations:
            share = devices if stage.distributed else 1
            found[stage.kind] = found.get(stage.kind, 0.0) + operations / rate / share / 3600
    return found


def announce(protocol: Protocol, stages: Sequence[Stage], run: Run) -> None:
    """Says how long the missing stages will take, and where the machine has not the number format that is asked for."""
    if not progress.first_rank() or all(stage.is_complete() for stage in stages if stage.kind in ("train", "sample")):
        return
    formats = {protocol.train.precision, protocol.sample.precision}
    if "bf16" in formats and not has_bf16():
        progress.say(
            "This CPU has no bfloat16 matrix products, which the protocol uses; falling back to float32. This is slower, "
            "and values differ from those of records in their last digits."
        )
    if protocol.ranked and not protocol.custom:
        code = record.git_state(*record.CODE)
        if code.dirty:
            progress.say(
                f"{listed(record.CODE)} have uncommitted changes: the records will say so, and `make submit` will refuse them"
            )
        elif code.commit is None:
            progress.say(f"git cannot name the commit ({code.why}): `make submit` will refuse the records")
    if protocol.rehearses and not protocol.custom:
        progress.say(f"{protocol.name} is a rehearsal, too short to converge; the full protocol is PROTOCOL={protocol.rehearses}")
    speed = measure_apart(protocol) if run.several and gpus() else measure(protocol, device())
    found = hours(stages, speed, run.count * run.nodes)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    told = [f"{show_hours(value)} to {VERBS[kind]}" for kind, value in found.items() if value * 3600 >= 1]
    whole = show_hours(sum(found.values()))
    machine = "this machine" if run.count * run.nodes == 1 else f"{run.count * run.nodes} devices like this one"
    progress.say(f"about {whole} on {machine}: {', '.join(told) or 'little is left'}; not counting data loading and metrics")
