"""Golden Gate RoPE: every band measures position along a direction of its own, spread by the golden ratio.

Source: Xiong 2025, https://jerryxio.ng/posts/nd-rope (its beginning was read, and its class GoldenGateRoPE2d in copies):
band j of head h is rotated by theta_j (x cos a + y sin a) with a = (h K/2 + j) pi / phi, phi = (1 + sqrt 5) / 2, so that
neighbouring bands look along well separated directions and no two heads share them. All K/2 bands of a head serve both axes,
where axial RoPE gives each axis half of them.

Training: own. At another grid: positions run on, as in extrapolation.
Our choices: frequencies are theta_j = base^(-2j/K) radians per token, with the base of all rotary methods of the protocol, and
positions are counted in tokens. The post spaces them geometrically between two tuned ends, from slow to fast, where ours go from
fast to slow: the directions of a head are the same in the other order. It scales an image of H x W to x within sqrt(W / H) and y
within sqrt(H / W) of its middle, which at another grid would be interpolation. Its option of bands
that are not rotated is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, frequencies, token_yx
from benchmark.model.method import Method

SPACING = math.pi * (math.sqrt(5) - 1) / 2  # pi / phi, in radians from one band's direction to the next one's


class GoldenGate(Method):
    title = "Golden Gate RoPE"
    paper = "https://jerryxio.ng/posts/nd-rope"
    year = 2025

    @dataclass(frozen=True)
    class Options:
        heads_differ: bool = True  # off: every head has the directions of the first

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        theta = frequencies(self.head_width, self.rope_base, self.device)  # [K/2]
        head = torch.arange(self.protocol.core.heads, device=self.device) * self.options.heads_differ
        band = torch.arange(len(theta), device=self.device)
        direction = (head[:, None, None] * len(theta) + band).double() * SPACING  # [H, 1, K/2]
        y, x = (position.double()[:, None] for position in token_yx(grid_hw, self.device))  # [T, 1]
        angle = theta * (x * direction.cos() + y * direction.sin())  # [H, T, K/2]
        return Encoding(rotary=(angle.cos().float()[None], angle.sin().float()[None]))
