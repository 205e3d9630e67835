"""The attribution rows have the parts of RPE-2D that they name."""

from __future__ import annotations

import torch
from strategies import build

from benchmark.model.draws import Draws


def test_attribution_rows():
    positions, augmented, both = (build(name) for name in ("rpe2d_positions", "rope_augmented", "rpe2d"))
    assert positions.augmentation == ("center_crop", {})
    assert positions.conditioner is None
    assert torch.equal(positions.encode((8, 12)).rotary[0], both.encode((8, 12)).rotary[0])
    assert augmented.augmentation == both.augmentation == ("random_resize_crop", {"largest": 1.5, "uncropped": 0.5})
    shapes = [{name: value.shape for name, value in method.named_parameters()} for method in (augmented, both)]
    assert shapes[0] == shapes[1]
    plain = build("extrapolation")
    drawn = Draws(0, 1, (0, 2), 2)
    for encoding in (augmented.encode((4, 6), draws=drawn), augmented.encode((8, 12))):
        grid = (4, 6) if len(encoding.rotary[0]) == 24 else (8, 12)
        assert torch.equal(encoding.rotary[0], plain.encode(grid).rotary[0])
