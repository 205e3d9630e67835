"""LookHere: most heads look in one direction only, and attention falls with the distance; nothing else tells positions.

Source: Fuller et al. 2024, arXiv 2405.13985, and the authors' code GreenCUBIC/lookhere (lookhere.py): a directed head sees the
keys of its field of view, borders and its own place included, and every head's logits get minus global slope x layer slope x
head slope x Euclidean distance. Fields of view (option `view`, degrees):
    180  four half planes: up, down, left, right
     90  four quadrants and the four cones around up, down, left and right
     45  eight halves of those cones
Head slopes: 1/2 for directed heads (1/4, 1/8, ... for later heads in a direction that is taken already); 1/4, 1/16, 1/64, 1/256
for heads without direction. All of this was read in the code; as there, with 12 heads eight are directed, and with 6 four.

Training: own. At another grid: the same rule, which was made for larger images.
The code takes the slopes from a configuration that lies in the checkpoints; here they are those that another repository gives
as the 90-degree model's: global slope 2, layer slopes from 1.5 in the first block to 0.5 in the last (options). The paper's text
was not read, nor the other models' values, so they have the same. Our choices: with 16 heads eight are directed; the code knows
eight, for one set of four directions, and twelve, for two of them. With fewer heads than directions, the blocks take turns. The
code's biases are bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.files import UserError
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, distances, token_yx
from benchmark.model.method import Method

QUADRANTS = ("up left", "up right", "down left", "down right")
CONES = ("cone up", "cone down", "cone left", "cone right")
VIEWS = {
    180: ("up", "down", "left", "right"),
    90: QUADRANTS + CONES,
    45: ("cone up left", "cone down left", "cone left up", "cone right up",
         "cone up right", "cone down right", "cone left down", "cone right down"),
}  # fmt: skip


class LookHere(Method):
    title = "LookHere"
    paper = "2405.13985"
    year = 2024
    revision = 2  # the global slope of the 90-degree model

    @dataclass(frozen=True)
    class Options:
        view: int = 90  # degrees
        slope: float = 2.0  # the global one
        first: float = 1.5  # layer slope of the first block
        last: float = 0.5  # of the last block; linear between

        def __post_init__(self) -> None:
            if self.view not in VIEWS:
                raise UserError(f"lookhere has views of 45, 90 and 180 degrees, not {self.view}")
            if min(self.slope, self.first, self.last) < 0:
                raise UserError("lookhere's slopes must not be negative: attention would grow with the distance")

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        depth = self.protocol.core.depth
        slopes = torch.linspace(self.options.first, self.options.last, depth).tolist()
        return Encoding(
            mask=[self.mask(grid_hw, tuple(self.directions(block))) for block in range(depth)],
            bias=Scaled(self.once("bias", grid_hw, lambda: self.bias(grid_hw)), slopes),
        )

    @property
    def directed(self) -> int:
        """Heads with a direction: two thirds, in whole sets of four where there are that many."""
        share = 2 * self.protocol.core.heads // 3
        return max(1, share - share % 4 if share >= 4 else share)

    def directions(self, block: int) -> list[str]:
        """The field of view of every head of a block: a name in VIEWS, or "" for all around."""
        views, directed = VIEWS[self.options.view], self.directed
        named = [views[(block * directed + head) % len(views)] for head in range(directed)]
        return named + [""] * (self.protocol.core.heads - directed)

    def head_slopes(self) -> list[float]:
        """The slope of each head, [H], as above; with more than four heads without direction, the four slopes are shared out."""
        directed, around = self.directed, self.protocol.core.heads - self.directed
        own = [2.0 ** -(1 + head // len(VIEWS[self.options.view])) for head in range(directed)]
        return own + [4.0 ** -(1 + (head * 4 // around if around > 4 else head)) for head in range(around)]

    def mask(self, grid_hw: tuple[int, int], directions: tuple[str, ...]) -> Tensor:
        """Which key (column) a query (row) of each head may see: boolean [H, T, T], made once a grid and set of directions."""
        name = ", ".join(directions)
        return self.once(name, grid_hw, lambda: torch.stack([seen(view, grid_hw, self.device) for view in directions]))

    def bias(self, grid_hw: tuple[int, int]) -> Tensor:
        """What is added to the logits of each head where the layer slope is 1: float32 [H, T, T], made once a grid."""
        slopes = self.options.slope * torch.tensor(self.head_slopes(), dtype=torch.float64, device=self.device)
        return (-slopes[:, None, None] * distances(grid_hw, self.device)).float()


def seen(view: str, grid_hw: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """Which key (column) a query (row) sees in a field of view: boolean [T, T]; "cone up left" is where both hold."""
    y, x = token_yx(grid_hw, device)
    down, right = y[None, :] - y[:, None], x[None, :] - x[:, None]  # from query to key
    half = {"up": down <= 0, "down": down >= 0, "left": right <= 0, "right": right >= 0}
    cone = {"up": -down >= right.abs(), "down": down >= right.abs(), "left": -right >= down.abs(), "right": right >= down.abs()}
    words = view.split()
    found = torch.ones_like(half["up"])
    if words[:1] == ["cone"]:
        found = cone[words[1]]
        words = words[2:]
    for word in words:
        found = found & half[word]
    return found


class Scaled(Sequence):
    """One tensor times a factor a block, multiplied when a block asks: a core of 28 blocks need not hold 28 of them."""

    def __init__(self, tensor: Tensor, factors: list[float]) -> None:
        self.tensor, self.factors = tensor, factors

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, block: int) -> Tensor:
        return self.factors[block] * self.tensor
