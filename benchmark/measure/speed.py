"""Measures the speed of the core against diffusers' DiT, and of each method against plain RoPE, in one run.

Contestants take turns in every round, so that whatever else the machine does meets all of them; ratios are medians of the
rounds' ratios.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmark import registry
from benchmark.files import UserError, unknown, write_json, write_text
from benchmark.model import checkpoint
from benchmark.model.dit import Core
from benchmark.model.encoding import Encoding, sincos_table, token_yx
from benchmark.model.flops import forward_flops, recognised
from benchmark.plan.place import processor
from benchmark.protocol import Core as CoreConfig
from benchmark.protocol import Data, Protocol

SIDE = 32  # latents: 256 pixels, 16 x 16 tokens with patch 2
CLASSES = 1000


def measure(
    out: Path, size: str = "S", batch: int = 8, rounds: int = 5, device: str = "", methods: bool = True
) -> dict[str, Any]:
    """Measures, prints the tables, and writes them to `out`/speed/<size>-<device>.{txt,json}.

    Args:
        out: the run folder.
        size: of the core, S, B, L or XL, with patch 2.
        batch: images a step.
        rounds: of which the first is not counted.
        device: "cpu" or "cuda"; by default the GPU where there is one.
        methods: whether to measure every method too.

    Returns:
        what the JSON file holds: seconds, images per second and ratios.
    """
    if size not in checkpoint.SIZES:
        raise unknown("size", size, checkpoint.SIZES)
    if rounds < 2 or batch < 1:
        raise UserError("speed needs at least 2 rounds (the first is a warm-up) and a batch of at least 1")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    result: dict[str, Any] = {
        "size": size, "batch": batch, "rounds": rounds, "device": device, "name": name, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "core": {}, "methods": {}}  # fmt: skip
    console = Console(record=True, width=110)
    console.print(f"DiT-{size}/2, 256 tokens, batch {batch}, {name}, {result['threads']} threads, torch {torch.__version__}")
    console.print(_core_table(result, size, batch, rounds, device))
    if methods:
        console.print(_method_table(result, size, batch, rounds, device))
    stem = out / "speed" / f"{size}-{device}"
    write_json(stem.with_suffix(".json"), result)
    write_text(stem.with_suffix(".txt"), console.export_text())
    return result


def _core_table(result: dict[str, Any], size: str, batch: int, rounds: int, device: str) -> Table:
    ours, theirs = _core(size).to(device), _peer(size).to(device)
    if device == "cuda":
        ours.compile()
        theirs.compile()
    y, x = token_yx((SIDE // 2,) * 2, device)
    encoding = Encoding(add=sincos_table(y, x, checkpoint.SIZES[size].width))
    image, level, label, noise = _inputs(batch, device)
    forwards = {
        "ours": (ours, lambda: ours(image, level, label, encoding)),
        "diffusers": (theirs, lambda: theirs(image, level, label).sample),
    }
    table = Table("", "precision", "ours, images/s", "diffusers", "ratio", "of the peak", title="core", title_justify="left")
    for training in (True, False):
        for precision in ("float32", "bf16"):
            steps = {key: _step(model, forward, noise, training, precision, device)
                     for key, (model, forward) in forwards.items()}  # fmt: skip
            seconds = paired(steps, rounds, device)
            rate = {key: batch / min(values) for key, values in seconds.items()}
            gain = ratio(seconds["diffusers"], seconds["ours"])
            flops = batch * flop(size) * (3 if training else 1)
            share = flops / min(seconds["ours"]) / _peak(precision, device)
            kind = "training step" if training else "forward"
            result["core"][f"{kind} {precision}"] = {"images_per_second": rate, "ratio": gain, "utilisation": share}
            table.add_row(
                kind, precision, f"{rate['ours']:.1f}", f"{rate['diffusers']:.1f}", f"{gain:.2f}", f"{100 * share:.0f} %"
            )
    return table


def _method_table(result: dict[str, Any], size: str, batch: int, rounds: int, device: str) -> Table:
    """Every method beside plain RoPE in bfloat16: a training step at 256 tokens, a sampling step at 20 x 20 tokens."""
    base = registry.shared()
    table = Table("method", "training step", "sampling step", title=f"time beside {base}", title_justify="left")
    rope = _method(base, size, device)
    for name in registry.names():
        torch.compiler.reset()  # or after eight variants of the core the next ones would be timed without compiling
        method = _method(name, size, device)
        row = {}
        for kind, action in (("training", _train_once), ("sampling", _sample_once)):
            if kind == "training" and method.trains_as:
                continue
            seconds = paired({"base": action(rope, batch, device), "own": action(method, batch, device)}, rounds, device)
            row[kind] = ratio(seconds["own"], seconds["base"])
        result["methods"][name] = row
        shown = [f"{100 * (row[kind] - 1):+.1f} %" if kind in row else "trains none" for kind in ("training", "sampling")]
        table.add_row(name, *shown)
    return table


def paired(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step in each round but the first; the steps take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            _wait(device)
            began = time.perf_counter()
            step()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """The median over rounds of one / other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def flop(size: str) -> float:
    """Floating-point operations of one image's forward at 256 tokens; a multiplication and an addition count as two."""
    core = CoreConfig(**checkpoint.SIZES[size]._asdict(), patch=2, channels=4)
    return forward_flops(core, 2, (SIDE // 2, SIDE // 2))


def _peak(precision: str, device: str) -> float:
    """FLOP/s of the device: the data sheet's for bfloat16 on a GPU that we know, else what a matrix product reaches."""
    known = recognised(torch.cuda.get_device_name()) if device == "cuda" and precision == "bf16" else None
    if known:
        return known.bf16 * 1e12
    width = 8192 if device == "cuda" else 1536
    a = torch.randn(width, width, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * width**3 / min(paired({"": lambda: a @ a}, 5, device)[""])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def _precision(precision: str, device: str) -> Iterator[None]:
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        yield


def _inputs(batch: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, noise = torch.randn(2, batch, 4, SIDE, SIDE, device=device)
    return image, torch.arange(batch, device=device) * 1000 // batch, torch.arange(batch, device=device) % CLASSES, noise


def _core(size: str) -> Core:
    return Core(**checkpoint.SIZES[size]._asdict(), patch=2, channels=4, out_channels=8, classes=CLASSES)


def _peer(size: str) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    depth, width, heads = checkpoint.SIZES[size]
    return DiTTransformer2DModel(
        num_layers=depth, num_attention_heads=heads, attention_head_dim=width // heads, in_channels=4, out_channels=8,
        sample_size=SIDE, patch_size=2, num_embeds_ada_norm=CLASSES, norm_eps=1e-6)  # fmt: skip


def _step(model: nn.Module, forward: Callable[[], Tensor], noise: Tensor, training: bool, precision: str,
          device: str) -> Callable[[], None]:  # fmt: skip
    """A training step (AdamW, fused) or a forward without gradients."""
    model.train(training)
    if not training:

        def look() -> None:
            with torch.no_grad(), _precision(precision, device):
                forward()

        return look
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0, fused=True)

    def learn() -> None:
        with _precision(precision, device):
            loss = (forward()[:, :4].float() - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return learn


def _method(name: str, size: str, device: str):
    """A method at 256 pixels of latents, with a larger test size."""
    config = CoreConfig(**checkpoint.SIZES[size]._asdict(), patch=2, channels=4, classes=CLASSES)
    rules = Protocol("speed", "", {"256x256": ["256x256", "320x320"]}, Data(representation="latents", factor=8), config)
    method = registry.build(name, rules, "256x256", 0).to(device)
    if device == "cuda":
        method.core.compile()
    return method


def _train_once(method, batch: int, device: str) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4, fused=True)
    image, _, label, _ = _inputs(batch, device)
    crop = torch.tensor([[300.0, 300, 10, 20, 256, 256]] * batch, device=device)
    data = {"image": image, "label": label, "crop": crop, "key": [""] * batch, "rows": (0, batch)}
    count = iter(range(10**9))

    def learn() -> None:
        with _precision("bf16", device):
            loss = method.loss(data | {"step": next(count)})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return learn


def _sample_once(method, batch: int, device: str) -> Callable[[], None]:
    image = torch.randn(batch, 4, 40, 40, device=device)
    label, crop = torch.arange(batch, device=device), torch.tensor([[320.0, 320, 0, 0, 320, 320]] * batch, device=device)
    count = iter(range(10**9))

    def look() -> None:
        noise = 1 - next(count) % 250 / 250  # another level each time, so that a timed encoding is made anew
        with torch.no_grad(), _precision("bf16", device):
            level = torch.full((batch,), 1000 * noise, device=device)
            method.predict(image, level, label, method.encoding((20, 20), noise), crop)

    return look
