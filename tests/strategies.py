"""Strategies to test, at the size of a test and of the papers, and formulas that several test files compare with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import small
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benchmark import registry
from benchmark.model.method import Method

D, BASE = 32, 10000.0  # of `latent`: channels of an axis, and the base of its frequencies
PLAIN = BASE ** (-np.arange(0, D, 2) / D)
GRIDS = [(16, 32), (16, 48), (64, 128), (16, 17), (512, 2048)]  # trained, tested
RATIOS = [(16, 32), (16, 64), (16, 24), (8, 12), (64, 256)]


def build(name: str, train: str = "16x24", tests: tuple[str, ...] = ("16x24", "32x48"), **sections: Any) -> Method:
    """A strategy on the tiny contest."""
    protocol = small.contest({train: list(tests)}, **sections)
    return registry.load(name)(protocol, train, 0, protocol.options.get(name, {})).eval()


def latent(name: str, head: int = 64, base: float = BASE, **sections: Any) -> Method:
    """A strategy at the scale of the papers: 16 tokens an axis (256 pixels), heads of 64 or 72 channels."""
    core = {"width": head, "heads": 1, "depth": 1, "rope_base": base, "patch": 2}
    return build(name, "32x32", ("32x32", "64x64", "128x128"), core=core, **sections)


def transformers_frequencies(kind: str, d: int, base: float, trained: int, tested: int, **extra) -> tuple[torch.Tensor, float]:
    """The library's frequencies and attention factor for a one-dimensional model of width d."""
    parameters = {"rope_type": kind, "rope_theta": base, "factor": tested / trained, **extra}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = trained
    config = LlamaConfig(hidden_size=d, num_attention_heads=1, max_position_embeddings=trained, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=tested)


def by_parts(trained: int, tested: int, factor: float = 1.0, plain: np.ndarray = PLAIN) -> np.ndarray:
    """NTK by parts, band by band: PI, then NTK, then plain, by the turns of each band."""
    s, found = tested / trained, []

    def share(j: int, fast: float, slow: float) -> float:
        low, high = (D * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(BASE)) for turns in (fast, slow))
        low, high = min(max(math.floor(low), 0), D - 1), min(max(math.ceil(high), 0), D - 1)
        return 1 - min(max((j - low) / ((high - low) or 0.001), 0), 1)

    for j, theta in enumerate(plain):
        ntk = theta ** (math.log(BASE * s ** (D / (D - 2))) / math.log(BASE))
        near, high = share(j, 1.25 * factor, 0.75 * factor), share(j, 16 * factor, 2 * factor)
        found.append(theta * high + (ntk * near + theta / s * (1 - near)) * (1 - high))
    return np.array(found)
