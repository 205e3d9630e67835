"""2-D ALiBi: attention falls with the distance between tokens, at a different rate in each head; nothing else encodes positions.

Source: Press et al. 2022 (ALiBi, arXiv 2108.12409, section 3): logits minus m_h times the distance, m_h = 2^(-8h/H), h = 1 ..
H; with the Euclidean distance on the grid as in CROMA (Fuller et al. 2023, arXiv 2311.00566), and the baseline of that name in
LookHere's paper.

Training: own. At another grid: the same rule; farther tokens than any in training weigh less still.
Our choice: the paper's formula for every number of heads; the authors' code has other slopes where it is not a power of two.
The distance is symmetric, so the core cannot tell left from right or up from down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, distances
from benchmark.model.method import Method


class ALiBi2D(Method):
    title = "2-D ALiBi"
    paper = "2311.00566"
    year = 2023

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        return Encoding(bias=[self.once("bias", grid_hw, lambda: self.bias(grid_hw))] * self.protocol.core.depth)

    def bias(self, grid_hw: tuple[int, int]) -> Tensor:
        """What is added to the logits of each head: float32 [H, T, T], made once a grid."""
        heads = self.protocol.core.heads
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, device=self.device).double() / heads)
        return (-slopes[:, None, None] * distances(grid_hw, self.device)).float()
