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
CORES = [(D, BASE), (16, 100.0), (32, 100.0)]  # the same two: of the papers, of the embedded protocols, of imagenet-64
GRIDS = [(16, 32), (16, 48), (64, 128), (16, 17), (512, 2048), (8, 16)]  # trained, tested
RATIOS = [(16, 32), (16, 64), (16, 24), (8, 12), (64, 256)]


def plain(d: int = D, base: float = BASE) -> np.ndarray:
    """The frequencies of plain RoPE, [d / 2]."""
    return base ** (-np.arange(0, d, 2) / d)


PLAIN = plain()


def build(name: str, train: str = "16x24", tests: tuple[str, ...] = ("16x24", "32x48"), **sections: Any) -> Method:
    """A strategy on the tiny protocol."""
    protocol = small.protocol({train: list(tests)}, **sections)
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


def by_parts(
    trained: int, tested: int, factor: float = 1.0, d: int = D, base: float = BASE, thetas: np.ndarray | None = None
) -> np.ndarray:
    """NTK by parts, band by band: PI, then NTK, then plain, by the turns of each band.

    Args:
        thetas: the frequencies to blend, where they are not the plain ones.
    """
    s, found = tested / trained, []

    def share(j: int, fast: float, slow: float) -> float:
        low, high = (d * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(base)) for turns in (fast, slow))
        low, high = min(max(math.floor(low), 0), d - 1), min(max(math.ceil(high), 0), d - 1)
        return 1 - min(max((j - low) / ((high - low) or 0.001), 0), 1)

    for j, theta in enumerate(plain(d, base) if thetas is None else thetas):
        ntk = theta ** (math.log(base * s ** (d / (d - 2))) / math.log(base))
        near, high = share(j, 1.25 * factor, 0.75 * factor), share(j, 16 * factor, 2 * factor)
        found.append(theta * high + (ntk * near + theta / s * (1 - near)) * (1 - high))
    return np.array(found)
