"""GPU checks in one call of at most nine minutes, with a tiny CPU mode for tests.

    python -m benchmark.measure.gpu [--out runs] [--data TINY_IMAGENET] [--minutes 9] [--tiny]
    python -m benchmark.measure.gpu --parts attention "XL/2, 256 tokens"

Parts, each written to OUT/gpu/<device>.json as soon as it is known: which kernels attention runs in, and that none needs the
plain formula; whether a stopped training continues with the same bits; a minute of the protocol imagenet-64; training speed of S,
B, L and XL beside diffusers' DiT.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmark import progress, protocol, registry
from benchmark.data.batches import Batches, Transform
from benchmark.data.index import Index
from benchmark.files import ROOT, exit_code, unknown, write_json
from benchmark.measure.speed import _core, _peak, _peer, _precision, _step, _wait, paired, ratio
from benchmark.model import checkpoint, dit
from benchmark.model.encoding import Encoding, sincos_table, token_yx
from benchmark.model.flops import forward_flops, training_flops
from benchmark.plan.layout import step_of
from benchmark.plan.place import Run
from benchmark.protocol import Core as CoreConfig
from benchmark.protocol import size_hw
from benchmark.run.train import prepared

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
SIDES = (16, 24)  # tokens an axis: 256 and 576, since diffusers' model knows squares only
MINUTE = 60


def attention(device: str, tokens: int = 256, heads: int = 16, batch: int = 4) -> dict[str, dict[str, Any]]:
    """Attention forward and backward with each kind of mask: whether fused kernels take it, and the kernels that ran.

    `_efficient_attention_backward`, `flash_bwd` and cuDNN's names say which it was; softmax and bmm are the plain formula's.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # the core has its own formula for bfloat16 on a processor
    seen = torch.rand(tokens, tokens, device=device) < 0.7
    seen.fill_diagonal_(True)
    bias = torch.randn(heads, tokens, tokens, device=device)
    cases: dict[str, tuple[Any, Any]] = {
        "none": (None, None), "causal": ("causal", None), "mask": (seen, None), "mask a head": (seen.expand(heads, -1, -1), None),
        "bias": (None, bias), "bias and mask": (seen, bias),
    }  # fmt: skip
    found = {}
    for (name, (mask, added)), width in itertools.product(cases.items(), (64, 72)):
        q, k, v = (torch.randn(batch, heads, tokens, width, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        turns = torch.stack([torch.cos(torch.ones(tokens, width // 2)), torch.sin(torch.ones(tokens, width // 2))], -1).to(device)

        def run(q: Tensor = q, k: Tensor = k, v: Tensor = v, turns: Tensor = turns, mask: Any = mask, added: Any = added) -> None:
            turned = dit.rotate(torch.stack([q, k]), turns)
            dit.attend(turned[0].to(v.dtype), turned[1].to(v.dtype), v, mask, added, None).sum().backward()

        try:
            with sdpa_kernel(FUSED):
                run()
            fused = True
        except RuntimeError:  # no kernel of these takes it
            fused = False
        activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
        with profile(activities=[activity]) as trace:
            run()
        kernels = sorted({event.key for event in trace.key_averages() if _tells(event.key)})
        found[f"{name}, head width {width}"] = {"fused": fused, "kernels": kernels}
    return found


def _tells(name: str) -> bool:
    return any(word in name.lower() for word in ("attention", "flash", "fmha", "cudnn", "softmax", "cutlass"))


def utilisation(device: str, size: str, side: int, batch: int, rounds: int) -> dict[str, float]:
    """A training step in bf16 (compiled on a GPU, fused AdamW) of this core and of diffusers' DiT, in turns."""
    ours, theirs = _core(size).to(device), _peer(size).to(device)
    if device == "cuda":  # compiling brings nothing on a processor and takes a minute
        ours.compile()
        theirs.compile()
    encoding = Encoding(add=sincos_table(*token_yx((side, side), device), checkpoint.SIZES[size].width))
    image, noise = torch.randn(2, batch, 4, 2 * side, 2 * side, device=device)
    level, label = torch.arange(batch, device=device), torch.arange(batch, device=device)
    forwards = {
        "ours": (ours, lambda: ours(image, level, label, encoding)),
        "diffusers": (theirs, lambda: theirs(image, level, label).sample),
    }
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = {key: _step(model, forward, noise, True, "bf16", device) for key, (model, forward) in forwards.items()}
    seconds = paired(steps, rounds, device)
    depth, width, heads = checkpoint.SIZES[size]
    flops = 3 * forward_flops(CoreConfig(width=width, depth=depth, heads=heads, patch=2, channels=4), 2, (side, side))
    best = {key: batch / min(values) for key, values in seconds.items()}
    found = {"ours": best["ours"], "diffusers": best["diffusers"], "ratio": ratio(seconds["diffusers"], seconds["ours"])}
    found["mfu"] = best["ours"] * flops / _peak("bf16", device)
    if device == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated()
    return found


def resumed(out: Path, steps: int = 200, *options: str) -> dict[str, Any]:
    """Whether a training that is stopped in the middle ends in the same bits as one that is not."""
    weights = []
    stopped_at = -1
    for name in ("straight", "stopped"):
        folder = out / "gpu" / name
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "benchmark", "train", registry.names()[0], "--protocol", "smoke", "--out", str(folder)]
        command += ["--devices", "1", "--every-steps", "10", f"train.steps={steps}", *options]
        if name == "stopped":
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not list(folder.glob("trainings/*/checkpoints/step=*")):
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            process.wait()
            stopped_at = max(map(step_of, folder.glob("trainings/*/checkpoints/step=*.ckpt")), default=-1)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        weights.append(safetensors.torch.load_file(next(folder.glob("trainings/*/weights.safetensors"))))
    equal = weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    return {"equal": equal, "stopped at": stopped_at, "steps": steps}


def minute(device: str, data: str, out: Path, seconds: float, tiny: bool) -> dict[str, float]:
    """Some time of imagenet-64's training, compiled, in bf16; from the pictures where there are any, else from noise."""
    rules = protocol.load("imagenet-64", ["core.width=48", "core.depth=2", "core.heads=2", "train.batch=8"] if tiny else [])
    size = next(iter(rules.cells))
    method = registry.build("extrapolation", rules, size, 0).to(device)
    if device == "cuda":
        method.core.compile()
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(method.parameters(), lr=rules.train.lr, fused=True)
    batch, (height, width) = rules.train.batch, size_hw(size)
    if data:
        reader = Batches(Index(prepared(rules, Run(out, data))), batch, transform=Transform((height, width)))
        batches = reader.loader(workers=8, pin_memory=device == "cuda")
    else:
        crop = torch.tensor([[height, width, 0, 0, height, width]] * batch, dtype=torch.float32)
        noise = {"image": torch.rand(batch, 3, height, width) * 2 - 1, "label": torch.arange(batch) % rules.core.classes}
        same = {key: value.to(device) for key, value in (noise | {"crop": crop}).items()}
        batches = (same | {"step": step, "rows": (0, batch)} for step in itertools.count())
    losses, began, steps = [], 0.0, -3  # the first three steps compile
    while steps < 1 or time.perf_counter() - began < seconds:
        item = next(batches)
        item |= {key: value.to(device, non_blocking=True) for key, value in item.items() if isinstance(value, Tensor)}
        with _precision("bf16", device):
            loss = method.loss(item)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        steps += 1
        if steps == 0:
            _wait(device)
            began = time.perf_counter()
    _wait(device)
    rate = steps * batch / (time.perf_counter() - began)
    found = {
        "images/s": rate,
        "steps": steps,
        "first loss": float(losses[0]),
        "last loss": float(torch.stack(losses[-20:]).mean()),
    }
    found["mfu"] = rate * training_flops(rules, size) / _peak("bf16", device)
    found["minutes for a family"] = rules.train.steps * batch / rate / 60
    if device == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated()
    return found


def measure(
    out: Path, data: str = "", minutes: float = 9, device: str = "", tiny: bool = False, parts: Sequence[str] = ()
) -> dict[str, Any]:
    """All parts, or those that `parts` names, as far as the time goes; what is left out is named.

    Raises:
        UserError: a part that there is not.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "left out": []}
    # Title -> seconds that it may take, and what it does.
    known: dict[str, tuple[float, Callable[[], Any]]] = {
        "attention": (20, lambda: attention(device, *((16, 2, 1) if tiny else ()))),
        "resume": (60, lambda: resumed(out, 30 if tiny else 200)),
        "resume, deterministic": (60, lambda: resumed(out, 30 if tiny else 200, "--deterministic")),
        "imagenet-64": (MINUTE + 60, lambda: minute(device, data, out, 0.2 if tiny else MINUTE, tiny)),
    }
    for size, side in itertools.product(("S",) if tiny else ("S", "XL", "B", "L"), (2,) if tiny else SIDES):
        batch = 2 if tiny else {"S": 256, "B": 128, "L": 64, "XL": 48}[size] * 16**2 // side**2
        work = functools.partial(utilisation, device, size, side, batch, 2 if tiny else 6)
        known[f"{size}/2, {side**2} tokens"] = 60, work
    for title in parts:
        if title not in known:
            raise unknown("part", title, known)
    for title, (needed, work) in known.items():
        if parts and title not in parts:
            continue
        if time.monotonic() + needed > end:
            found["left out"].append(title)
        else:
            found[title] = work()
            torch.compiler.reset()  # or after eight variants of the core the next ones would run without compiling
            gc.collect()  # a compiled core and what it was compiled to hold each other: its memory would count in the next part
            progress.say(f"{title}: {json.dumps(found[title])}")
        write_json(out / "gpu" / f"{device}.json", found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--data", default="")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--parts", nargs="+", default=[], help="only these, by their names in the JSON file")
    parser.add_argument("--tiny", action="store_true", help="seconds, on any device: to see that it runs")
    args = parser.parse_args()
    return exit_code(lambda: measure(args.out, args.data, args.minutes, tiny=args.tiny, parts=args.parts))


if __name__ == "__main__":
    sys.exit(main())
