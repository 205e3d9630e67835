"""Randomized positions on the flattened sequence: RPE-2D's ancestor, which knows nothing of rows and columns.

Source: Ruoss et al. 2023, arXiv 2305.16843, section 3 (google-deepmind/randomized_positional_encodings): n distinct integers
out of 0 .. L_max - 1, ascending, as positions of one-dimensional RoPE; here of the tokens row by row.

Training: as above, one draw for all layers. At another grid: evenly spaced over [0, L_max - 1] by default, or a random subset as
in their code (option `spacing`).
Departures: their code takes one draw per batch (option `draw` "batch"; ours is one per sample) and a fresh one in every layer.
Our choice: L_max is the number of tokens of the largest test grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.files import UserError, unknown
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, frequencies
from benchmark.model.method import Method
from benchmark.streams import POSITIONS


class Randomized1D(Method):
    title = "Randomized 1-D"
    paper = "2305.16843"
    year = 2023

    @dataclass(frozen=True)
    class Options:
        l_max: int = 0  # positions; 0 is the most tokens of any test grid of the protocol
        spacing: str = "even"  # at test: "even" or "random"
        draw: str = "sample"  # in training, one draw a "sample" or a "batch"

        def __post_init__(self) -> None:
            for name, choices in (("spacing", ("even", "random")), ("draw", ("sample", "batch"))):
                if getattr(self, name) not in choices:
                    raise unknown(f"randomized_1d {name}", getattr(self, name), choices)

    def build(self) -> None:
        self.l_max = self.options.l_max or self.most_tokens
        trained = self.train_grid[0] * self.train_grid[1]
        if self.l_max < trained:
            raise UserError(f"randomized_1d: l_max {self.l_max} is smaller than the training grid's {trained} tokens")

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        tokens = grid_hw[0] * grid_hw[1]
        if tokens > self.l_max:
            raise UserError(
                f"randomized_1d: a grid of {grid_hw[0]} x {grid_hw[1]} has more tokens than l_max = {self.l_max}; "
                "train with a larger options.randomized_1d.l_max"
            )
        theta = frequencies(self.head_width, self.rope_base, self.device)
        angle = self.positions(tokens, draws).double()[..., None] * theta
        tables = angle.cos().float(), angle.sin().float()
        return Encoding(rotary=tables if angle.dim() == 2 else tuple(table[:, None] for table in tables))

    def positions(self, tokens: int, draws: Draws | None) -> Tensor:
        """The positions of the tokens: [B, T] in training with one draw per sample, else [T]."""
        if draws is not None:
            if self.options.draw == "sample":
                return draws.subsets(tokens, self.l_max)
            order = torch.rand(self.l_max, generator=draws.generator, dtype=torch.float64).argsort()
            return order[:tokens].sort().values.to(self.device)
        if self.options.spacing == "random":
            return Draws(self.seed, 0, (0, 1), 1, self.device, POSITIONS).subsets(tokens, self.l_max)[0]
        if tokens == 1:
            return torch.full((1,), (self.l_max - 1) / 2, dtype=torch.float64, device=self.device)
        return torch.arange(tokens, device=self.device).double() * (self.l_max - 1) / (tokens - 1)
