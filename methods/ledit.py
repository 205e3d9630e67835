"""LEDiT: no positional encoding; causal attention and one convolution give the order, at any size.

Source: arXiv 2503.04344 v3 (text and appendices; a separate supplement was not seen, and the authors' repository holds a README
only). Blocks alternate self-attention and causal attention, starting with self-attention. The causal mask works in two
dimensions; of the paper's four scan variants (d) is the default. One 3x3 zero-padded convolution after patchify gives locality.
Recipes:
    "finetune"  as printed: every second block is causal; with probability 0.1 a training step uses dilation 2 (padding 2, the
                same weights), never at test. Meant for a pretrained DiT without its sin-cos table.
    "scratch"   the paper's refinement for training from scratch: LayerNorm after the convolution, a single causal layer, no
                multi-dilation.

Training: own. At another grid: the same rule builds the mask of that grid.
Our readings: (d) "mask lower-right corner": query (y, x) may not see key (y', x') iff y' > y and x' > x; (b): sees only y' <=
y and x' <= x; (c): (b) with the 3x3 neighbourhood unmasked. Departure: the paper writes the convolution into its equation (1)
without groups or a sum, so literally it is full and not residual; here it is depthwise, residual and starts at zero
(options): after 3,000 steps the FIDs were equal and the loss 3 % lower (leaderboards/notes/convergence.md). Departure: the paper
scales LEDiT's attention logits beyond the training size, as Jin et al. do; here that is a switch of the protocol, the same for
all methods. Not stated in the paper and chosen here: the single causal layer of the from-scratch recipe is the second block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.files import UserError, unknown
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, token_yx
from benchmark.model.method import Method, refuse_unused

SCANS = ("raster", "lower_right", "neighbourhood", "corner")  # the paper's (a), (b), (c), (d)
RECIPES = ("scratch", "finetune")
LAYERS = ("single", "alternating")


class LEDiT(Method):
    title = "LEDiT"
    note = "from the paper's text: the authors' repository holds a README only"
    paper = "2503.04344"
    year = 2025

    @dataclass(frozen=True)
    class Options:
        recipe: str = "scratch"  # or "finetune": alternating causal blocks and multi-dilation, no norm
        scan: str = "corner"
        causal: bool = True  # off: an ablation
        convolution: bool = True  # off: an ablation
        layers: str = ""  # which blocks are causal: "single", "alternating", or what the recipe says
        depthwise: bool = True
        residual: bool = True
        norm: bool = True  # LayerNorm after the convolution (scratch only)
        dilated: float = 0.1  # probability of a dilated step (finetune only)

        def __post_init__(self) -> None:
            if self.scan not in SCANS:
                raise unknown("ledit scan", self.scan, SCANS)
            if self.recipe not in RECIPES:
                raise unknown("ledit recipe", self.recipe, RECIPES)
            if self.layers not in ("", *LAYERS):
                raise unknown("ledit layers", self.layers, LAYERS)
            if not 0 <= self.dilated <= 1:
                raise UserError(f"ledit: dilated is {self.dilated:g}, must be a probability from 0 to 1")
            refuse_unused(self, f"with recipe={self.recipe}", "dilated" if self.recipe == "scratch" else "norm")
            if not self.causal:
                refuse_unused(self, "with causal=false", "scan", "layers")
            if not self.convolution:
                refuse_unused(self, "with convolution=false", "depthwise", "residual", "norm", "dilated")

    def build(self) -> None:
        options = self.options
        if options.convolution:
            norm = options.norm and options.recipe == "scratch"
            self.stem = Locality(self.protocol.core.width, options.depthwise, options.residual, norm)

    def causal_blocks(self) -> list[int]:
        """The blocks with causal attention."""
        depth = self.protocol.core.depth
        if not self.options.causal:
            return []
        layers = self.options.layers or ("alternating" if self.options.recipe == "finetune" else "single")
        return list(range(1, depth, 2)) if layers == "alternating" else [1][: depth - 1]

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        dilates = self.stem is not None and self.options.recipe == "finetune" and draws is not None
        stem = {"dilation": 2} if dilates and draws.once() < self.options.dilated else {}
        causal = self.causal_blocks()
        mask = "causal" if self.options.scan == "raster" else self.mask(grid_hw) if causal else None
        return Encoding(mask=[mask if block in causal else None for block in range(self.protocol.core.depth)], stem=stem)

    def mask(self, grid_hw: tuple[int, int]) -> Tensor:
        """Which key (column) a query (row) may see: boolean [T, T], made once a grid."""
        return self.once("mask", grid_hw, lambda: scan_mask(self.options.scan, grid_hw, self.device))


def scan_mask(scan: str, grid_hw: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """The paper's scan variants (a) to (d) as boolean [T, T], true where a query (row) may see a key (column)."""
    y, x = token_yx(grid_hw, device)
    down, right = y[None, :] - y[:, None], x[None, :] - x[:, None]  # from query to key
    if scan == "raster":
        return (down < 0) | ((down == 0) & (right <= 0))
    if scan == "corner":
        return ~((down > 0) & (right > 0))
    seen = (down <= 0) & (right <= 0)
    return seen if scan == "lower_right" else seen | ((down.abs() <= 1) & (right.abs() <= 1))


class Locality(nn.Module):
    """A 3x3 zero-padded convolution over the token grid: [B, D, h, w] -> same."""

    def __init__(self, width: int, depthwise: bool, residual: bool, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width if depthwise else 1)
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else None
        self.residual = residual
        if residual:
            nn.init.zeros_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, dilation: int = 1) -> Tensor:
        # Padding equal to the dilation keeps the grid.
        y = F.conv2d(x, self.conv.weight, self.conv.bias, padding=dilation, dilation=dilation, groups=self.conv.groups)
        y = x + y if self.residual else y
        return y if self.norm is None else self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
