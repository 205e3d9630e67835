"""Learned table: one trained vector per token, resized like an image to any other grid.

Source: Dosovitskiy et al. 2021 (ViT, arXiv 2010.11929), section 3.2: two-dimensional interpolation of the pretrained table;
here bicubic. Departure from timm's resample_abs_pos_embed, whose default is antialiased: that smooths a table that shrinks, and
in PyTorch it also changes the kernel of one that grows.

Training: own; the table starts as normal numbers of deviation 0.02. At another grid: bicubic resize between token centres
(align_corners=False). The table is what this method learns, so its size is that of the training grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding
from benchmark.model.method import Method


class Learned(Method):
    title = "Learned table"
    paper = "2010.11929"
    year = 2020
    learns_positions = True
    grid_sized = ("table",)

    def build(self) -> None:
        self.table = nn.Parameter(0.02 * torch.randn(1, self.protocol.core.width, *self.train_grid))

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        table = self.table
        if grid_hw != self.train_grid:
            table = F.interpolate(table, grid_hw, mode="bicubic", align_corners=False)
        return Encoding(add=table[0].flatten(1).T)
