"""2-D ALiBi: slopes as printed, distances by hand, the fall of attention, and that nothing but distances counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from strategies import build


def bias(grid_hw: tuple[int, int], heads: int) -> torch.Tensor:
    encoding = build("alibi_2d", core={"width": 32 * heads, "heads": heads}).encode(grid_hw)
    assert encoding.mask is None
    assert encoding.rotary is None
    assert len(encoding.bias) == 2
    return encoding.bias[1]


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [(8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]), (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]), (1, [1 / 256])],
)
def test_slopes_as_printed(heads, slopes):
    """A step to the right costs a head its slope (Press et al. 2022, section 3: 8 heads from 1/2 to 1/256)."""
    assert bias((1, 2), heads)[:, 0, 1].tolist() == [-slope for slope in slopes]


def test_distances_by_hand():
    """2 x 3 tokens, in half steps of the first of two heads, whose slope is 1/16."""
    root = 2**0.5, 5**0.5
    rows = [[0, 1, 2, 1, root[0], root[1]], [1, 0, 1, root[0], 1, root[0]], [2, 1, 0, root[1], root[0], 1]]
    expected = torch.tensor(rows + [[*row[3:], *row[:3]] for row in rows])
    torch.testing.assert_close(bias((2, 3), 2)[0], -expected / 16)
    torch.testing.assert_close(bias((2, 3), 2)[1], -expected / 256)


def test_a_rectangle_equals_scipy():
    place = np.argwhere(np.ones((5, 7)))
    np.testing.assert_allclose(bias((5, 7), 8)[2], -cdist(place, place) / 8, rtol=1e-6)


def test_one_table_for_all_blocks_and_steps():
    method = build("alibi_2d")
    assert method.encode((4, 6)).bias[0] is method.encode((4, 6)).bias[1]


def test_shifting_query_and_key_together_changes_nothing():
    table = bias((5, 3), 2).view(2, 5, 3, 5, 3)
    assert torch.equal(table[:, 0, 0, 2, 1], table[:, 2, 1, 4, 2])
    assert torch.equal(table, table.permute(0, 3, 4, 1, 2)), "left and right, up and down cannot be told apart"
