"""Extrapolation: plain axial RoPE; a larger grid simply has larger positions.

Source: axial 2-D RoPE as in FiT (arXiv 2402.12376; whlzy/FiT, rope.py): half of each head is rotated by y, half by x, with the
same frequencies in every head; the channel pairs (0, 1), (2, 3), ... are rotated together. Positions are 0 .. grid - 1.

Training: positions 0 .. L - 1. At another grid: nothing changes. Every training-free rotary method derives from this class and
uses its checkpoint; such a method overrides `theta` (and `attention_factor`), and must leave the training grid alone exactly.
Our choice: the base of the frequencies belongs to the protocol (`core.rope_base`), one for all rotary methods of a table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmark.files import UserError, shown
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, frequencies, rotary
from benchmark.model.method import Method, is_finite


class Extrapolation(Method):
    title = "Extrapolation"
    paper = "2402.12376"
    year = 2024

    @property
    def axis_width(self) -> int:
        """d, the channels of a head that one axis rotates."""
        return self.head_width // 2

    def plain(self, base: float | None = None) -> Tensor:
        """theta_j = base^(-2j/d), float64 [d / 2] on the method's device."""
        return frequencies(self.axis_width, base or self.rope_base, self.device)

    def ramp(self, trained: int, fast: float, slow: float) -> Tensor:
        """A band's weight between plain (0) and stretched (1), by its turns in the training grid: 0 from `fast`, 1 up to `slow`.

        Linear in the band's number between them, and 0 at the first band however few turns it makes (1.27 on 8 tokens).

        Band c(r) = d ln(L / (2 pi r)) / (2 ln base) turns r times; both ends are rounded outwards and clamped to [0, d - 1]
        (jquesnelle/yarn and FiT, rope.py, clamp `low` from below and `high` from above alone: the same wherever some band turns
        `slow` times). Every by-parts method blends with it.

        Returns:
            float64 [d / 2].
        """
        d = self.axis_width
        low, high = (
            min(max(rounded(d * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(self.rope_base))), 0), d - 1)
            for rounded, turns in ((math.floor, fast), (math.ceil, slow))
        )
        j = torch.arange(d // 2, device=self.device).double()
        return ((j - low) / max(high - low, 0.001)).clamp(0, 1)  # 0.001: the public code's guard against an empty ramp

    def theta(self, trained: int, tested: int, time: float | None) -> Tensor:
        """The frequencies of one axis in radians per token, float64 [d / 2].

        Args:
            trained: L, tokens on this axis in training.
            tested: tokens on this axis now.
            time: noise level in sampling, where the method is `timed`.
        """
        return self.plain()

    def attention_factor(self, stretch: float) -> float:
        """A factor on cos and sin (YaRN's sqrt(1 / t)), for a larger axis `stretch` = max(test / train, 1) times as long."""
        return 1.0

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        thetas = [
            self._checked(self.theta(trained, tested, time), trained, tested, draws is None and not self.timed)
            for trained, tested in zip(self.train_grid, grid_hw, strict=True)
        ]
        stretch = max(1.0, *(tested / trained for trained, tested in zip(self.train_grid, grid_hw, strict=True)))
        scale = 1.0 if self.scaled_by_protocol else self.attention_factor(stretch)
        return Encoding(rotary=rotary(*(torch.arange(n, device=self.device) for n in grid_hw), *thetas, scale))

    def _checked(self, theta: Tensor, trained: int, tested: int, values: bool) -> Tensor:
        """What `theta` returned, if its shape is right and, with `values`, it is finite: each step would stall a GPU."""
        wanted = (self.axis_width // 2,)
        if not isinstance(theta, Tensor):
            problem = shown(theta)
        elif theta.shape != wanted:
            problem = f"one of shape {list(theta.shape)}"
        elif values and not is_finite(theta):
            problem = "one with NaN or infinity"
        else:
            return theta
        raise UserError(
            f"{self.file}: theta must return a finite tensor of shape [d/2] = {list(wanted)}, not {problem} "
            f"(an axis of {trained} tokens in training, {tested} now)"
        )
