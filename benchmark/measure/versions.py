"""Times two checkouts of this project side by side, to show what a change of the core costs methods that do not use it.

    git worktree add ../before COMMIT
    python -m benchmark.measure.versions ../before extrapolation sincos ledit

Each checkout has a process of its own, with the same seed and inputs; they take turns step by step, and in who begins. The ratio
is the median over rounds of here / there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark import protocol, registry
from benchmark.files import ROOT, UserError, exit_code
from benchmark.measure.speed import ratio

PROTOCOL, ROUNDS = "shapes", 12  # rounds: of which the first is not counted
KINDS = ("training step", "sampling forward")
# Reads "<method>;<kind>" and answers with the seconds of one step. It runs in either checkout: what it calls is in both.
WORKER = """
import sys, time
import torch
from benchmark import protocol, registry

rules = protocol.load(sys.argv[1])
train = next(iter(rules.cells))
test = max(rules.cells[train], key=lambda size: rules.grid(size)[0] * rules.grid(size)[1])
batch = rules.train.batch

def inputs(size):
    height, width = map(int, size.split("x"))
    image = torch.randn(batch, rules.core.channels, *rules.latent_hw(size), generator=torch.Generator().manual_seed(0))
    crop = torch.tensor([[height, width, 0, 0, height, width]] * batch, dtype=torch.float32)
    return image, torch.arange(batch) % rules.core.classes, crop

def built(name):
    method = registry.build(name, rules, train, 0)
    method.log = lambda *_, **__: None
    return method

def steps(name):
    one, other = built(name), built(name).eval()
    optimizer = torch.optim.AdamW(one.parameters(), lr=1e-4, fused=True)
    image, label, crop = inputs(train)
    data = {"image": image, "label": label, "crop": crop, "key": [""] * batch, "step": 0, "rows": (0, batch)}
    larger, _, crop_there = inputs(test)

    def learn():
        with torch.autocast("cpu", torch.bfloat16, enabled=rules.train.precision == "bf16"):
            loss = one.training_step(data, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def look():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rules.sample.precision == "bf16"):
            other.predict(larger, torch.full((batch,), 500.0), label, other.encoding(rules.grid(test), 0.5), crop_there)

    return {"training step": learn, "sampling forward": look}

known = {}
for line in sys.stdin:
    name, kind = line.strip().split(";")
    if name not in known:
        known[name] = steps(name)
    began = time.perf_counter()
    known[name][kind]()
    print(time.perf_counter() - began, flush=True)
"""


class Worker:
    """A process that runs steps with the code of one checkout."""

    def __init__(self, folder: Path, protocol_name: str) -> None:
        self.folder = folder
        command = [sys.executable, "-c", WORKER, protocol_name]
        self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, name: str, kind: str) -> float:
        """Of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{name};{kind}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(f"the code in {self.folder} did not run a {kind} of {name}; see above for the reason")
        return float(answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def compare(
    there: Path, names: Sequence[str], protocol_name: str = PROTOCOL, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """{method: {kind of step: median of here / there}}, on the CPU.

    Args:
        there: another checkout of this project, which has the methods too.
        rounds: of which the first is not counted.
    """
    if not (there / "benchmark" / "registry.py").is_file():
        raise UserError(f"{there} is not a checkout of this project")
    workers = [Worker(ROOT, protocol_name), Worker(there, protocol_name)]
    try:
        found: dict[str, dict[str, float]] = {}
        for name in names:
            for kind in KINDS:
                seconds: tuple[list[float], list[float]] = ([], [])
                for number in range(rounds):
                    for side in (0, 1) if number % 2 else (1, 0):  # the second finds the machine as the first left it
                        seconds[side].append(workers[side].seconds(name, kind))
                found.setdefault(name, {})[kind] = ratio(seconds[0][1:], seconds[1][1:])
        return found
    finally:
        for worker in workers:
            worker.stop()


def show(words: Sequence[str]) -> None:
    """Prints the ratios of the methods that are named, or of the protocol's."""
    if not words:
        raise UserError("give the checkout to compare with: python -m benchmark.measure.versions FOLDER [METHOD ...]")
    names = [registry.check(name) for name in words[1:]] or protocol.load(PROTOCOL).methods
    table = Table("method", *KINDS, title=f"time here / in {words[0]}, core of {PROTOCOL}", title_justify="left")
    for name, row in compare(Path(words[0]), names).items():
        table.add_row(name, *(f"{row[kind]:.3f}" for kind in KINDS))
    Console().print(table)


def main(words: Sequence[str]) -> int:
    return exit_code(lambda: show(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
