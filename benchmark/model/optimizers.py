"""Optimizers not in torch: Muon for matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW on two sets of parameters, with one list of groups, one state and one state dict.

    Muon moves a matrix along the nearest orthogonal one to its momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon):
    five Newton-Schulz iterations in bfloat16, Nesterov momentum 0.95, the step of a matrix [A, B] scaled by sqrt(max(1, A / B)).
    A single optimizer is what a trainer's automatic optimization, its schedule and its checkpoints expect.

    Args:
        matrices: two-dimensional parameters, for Muon.
        others: all other parameters, for AdamW.
        lr, betas, fused: of AdamW.
        muon_lr: of Muon.
        weight_decay: of both, decoupled.
    """

    def __init__(
        self,
        matrices: Iterable[Parameter],
        others: Iterable[Parameter],
        *,
        lr: float,
        muon_lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        fused: bool = False,
    ) -> None:
        muon = torch.optim.Muon(list(matrices), lr=muon_lr, weight_decay=weight_decay)
        adamw = torch.optim.AdamW(list(others), lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        self._parts = (muon, adamw)
        super().__init__([dict(group) for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Lets both parts work on this optimizer's groups and state, so that a schedule or a loaded state reaches them."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """What torch keeps of an optimizer in a copy, and the two parts, which it knows nothing of."""
        return {**super().__getstate__(), "_parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_parts" in state:  # load_state_dict comes here with groups and state alone
            self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
