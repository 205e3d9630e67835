"""NoPE: no positional encoding at all; the lower-bound baseline.

Source: Haviv et al. 2022, arXiv 2203.16634, for language models, whose causal mask tells the order. Here there is none: every
token sees its own content and the others as a set without order.

Training: own. At another grid: nothing changes.
"""

from __future__ import annotations

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding
from benchmark.model.method import Method


class NoPE(Method):
    title = "NoPE"
    paper = "2203.16634"
    year = 2022

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        return Encoding()
