"""Twenty losses of every trained family, to the digits: a refactor must not move them.

Weights, data and the random numbers of each step come from numpy's Philox, so that no version of torch draws others. Where a
change of the numbers is meant, `python tests/test_golden.py` writes them anew; the difference belongs into the commit's message.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import small

from benchmark import method, registry

GOLDEN = Path(__file__).parent / "golden.json"
FLOW, DDPM = {}, {"name": "ddpm"}
CASES = {
    "extrapolation": ("extrapolation", {}, FLOW),
    "extrapolation ddpm": ("extrapolation", {}, DDPM),
    "learned": ("learned", {}, FLOW),
    "ledit": ("ledit", {}, FLOW),
    "ledit_causal": ("ledit_causal", {}, FLOW),
    "ledit_convolution": ("ledit_convolution", {}, FLOW),
    "ledit_finetune": ("ledit_finetune", {"dilated": 0.5}, FLOW),
    "nope": ("nope", {}, FLOW),
    "randomized_1d": ("randomized_1d", {}, FLOW),
    "rope_augmented": ("rope_augmented", {}, FLOW),
    "rpe2d": ("rpe2d", {}, FLOW),
    "rpe2d_positions": ("rpe2d_positions", {}, FLOW),
    "sincos": ("sincos", {}, FLOW),
}


class PhiloxDraws(method.Draws):
    """A training step's random numbers from numpy."""

    def __init__(self, seed, step, rows, count, device="cpu"):
        self.source = np.random.Generator(np.random.Philox(key=[seed, step]))
        self.total = rows[1]

    def normal(self, *shape):
        return torch.from_numpy(self.source.standard_normal((self.total, *shape), dtype=np.float32))

    def uniform(self, *shape):
        return torch.from_numpy(self.source.random((self.total, *shape), dtype=np.float32))

    def once(self):
        return float(self.source.random())

    def subsets(self, size, of):
        return torch.from_numpy(np.sort(self.source.random((self.total, of)).argsort(1)[:, :size], axis=1))


def losses(name: str, options: dict, objective: dict) -> list[float]:
    """Twenty steps of AdamW in float32 on the CPU."""
    contest = small.contest(objective=objective, core={"depth": 3}, train={"warmup": 3, "decay": 5, "weight_decay": 0.01})
    model = small.fill(registry.load(name)(contest, "16x24", 0, options), 0.15).train()
    setup = model.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    found = []
    for step in range(20):
        loss = small.loss(model, step)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_recorded(case, monkeypatch):
    """Relative tolerance 1e-4: other processors and threads round in another order."""
    monkeypatch.setattr(method, "Draws", PhiloxDraws)
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses(*CASES[case]) == pytest.approx(recorded[case], rel=1e-4)


def test_every_trained_strategy_has_its_losses():
    trained = {name for name in registry.names() if registry.trained_name(name) == name}
    assert trained <= {name for name, _, _ in CASES.values()}


if __name__ == "__main__":
    method.Draws = PhiloxDraws
    lines = [f' "{case}": {json.dumps([float(f"{v:.7g}") for v in losses(*setting)])}' for case, setting in CASES.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
