"""Attention scale: plain RoPE, and logits that grow with the number of tokens so that attention stays as sharp.

Source: Jin et al. 2023, arXiv 2306.08645: logits times sqrt(ln N_test / ln N_train) (option `rule` "jin"); "fitv2" is FiTv2's
max(1, ln N_test / ln N_train); the code whlzy/FiT has 2 N_test there.

Training: plain RoPE (Extrapolation's checkpoint). At another grid: positions run on, as in extrapolation.
Where the protocol scales the attention of all methods, this one adds nothing and equals extrapolation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmark.files import unknown
from benchmark.model.draws import Draws
from benchmark.model.encoding import Encoding, attention_scale
from methods.extrapolation import Extrapolation

RULES = ("jin", "fitv2")


class AttentionScale(Extrapolation):
    title = "Attention scale"
    paper = "2306.08645"
    year = 2023
    trains_as = "extrapolation"

    @dataclass(frozen=True)
    class Options:
        rule: str = "jin"

        def __post_init__(self) -> None:
            if self.rule not in RULES:
                raise unknown("attention_scale rule", self.rule, RULES)

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        rule = "none" if self.scaled_by_protocol else self.options.rule
        tokens, trained = (h * w for h, w in (grid_hw, self.train_grid))
        plain = super().encode(grid_hw, time=time, draws=draws)
        return dataclasses.replace(plain, logit_scale=attention_scale(rule, tokens, trained))
