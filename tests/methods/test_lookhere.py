"""LookHere: fields of view as drawn, slopes as in the authors' code, and what a head attends to."""

from __future__ import annotations

import pytest
import small
import torch
from strategies import build

from benchmark.files import UserError
from methods.lookhere import VIEWS, seen

# What the middle of 5 x 5 tokens, o, sees in a field of view, x.
DRAWN = {
    "up": "xxxxx|xxxxx|xxoxx|.....|.....",
    "down": ".....|.....|xxoxx|xxxxx|xxxxx",
    "left": "xxx..|xxx..|xxo..|xxx..|xxx..",
    "right": "..xxx|..xxx|..oxx|..xxx|..xxx",
    "up left": "xxx..|xxx..|xxo..|.....|.....",
    "up right": "..xxx|..xxx|..oxx|.....|.....",
    "down left": ".....|.....|xxo..|xxx..|xxx..",
    "down right": ".....|.....|..oxx|..xxx|..xxx",
    "cone up": "xxxxx|.xxx.|..o..|.....|.....",
    "cone down": ".....|.....|..o..|.xxx.|xxxxx",
    "cone left": "x....|xx...|xxo..|xx...|x....",
    "cone right": "....x|...xx|..oxx|...xx|....x",
    "cone up left": "xxx..|.xx..|..o..|.....|.....",
    "cone up right": "..xxx|..xx.|..o..|.....|.....",
    "cone down left": ".....|.....|..o..|.xx..|xxx..",
    "cone down right": ".....|.....|..o..|..xx.|..xxx",
    "cone left up": "x....|xx...|xxo..|.....|.....",
    "cone left down": ".....|.....|xxo..|xx...|x....",
    "cone right up": "....x|...xx|..oxx|.....|.....",
    "cone right down": ".....|.....|..oxx|...xx|....x",
    "": "xxxxx|xxxxx|xxoxx|xxxxx|xxxxx",
}


@pytest.mark.parametrize("view", DRAWN)
def test_fields_of_view_as_drawn(view):
    drawn = torch.tensor([letter != "." for row in DRAWN[view].split("|") for letter in row])
    assert torch.equal(seen(view, (5, 5))[12], drawn)


def test_every_field_of_view_is_drawn():
    assert {view for views in VIEWS.values() for view in views} | {""} == DRAWN.keys()


@pytest.mark.parametrize("degrees", [45, 90, 180])
def test_fields_of_view_cover_all_directions(degrees):
    """Together they see everything: on a rectangle every pair, most of it exactly as often as the angle says."""
    count = sum(seen(view, (5, 7)).long() for view in VIEWS[degrees]).view(5, 7, 5, 7)
    assert count.min() >= 1
    assert count[2, 3, 2, 3] == len(VIEWS[degrees]), "its own place is in every view"
    expected = {45: 1, 90: 2, 180: 2}[degrees]
    inside = count[2, 3, 0, 4], count[2, 3, 3, 6], count[2, 3, 4, 2], count[2, 3, 1, 0]  # on no border
    assert [value.item() for value in inside] == [expected] * 4


def test_a_rectangle_by_hand():
    """Rows are queries of 2 x 3 tokens; up, and the cone to the right."""
    up = "xxx...|xxx...|xxx...|xxxxxx|xxxxxx|xxxxxx"
    right = "xxx.xx|.xx..x|..x...|.xxxxx|..x.xx|.....x"
    for view, drawn in (("up", up), ("cone right", right)):
        expected = torch.tensor([[letter == "x" for letter in row] for row in drawn.split("|")])
        assert torch.equal(seen(view, (2, 3)), expected)


def look(heads: int, depth: int = 2, **options):
    return build("lookhere", core={"width": 32 * heads, "heads": heads, "depth": depth}, options={"lookhere": options})


def test_twelve_heads_as_in_the_authors_code():
    """180 degrees: four directions twice, then four heads without; slopes 1/2, 1/4, then 1/4, 1/16, 1/64, 1/256."""
    around = [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    half = look(12, view=180)
    assert half.directions(0) == half.directions(1) == ["up", "down", "left", "right"] * 2 + [""] * 4
    assert half.head_slopes() == [1 / 2] * 4 + [1 / 4] * 4 + around
    for degrees in (45, 90):
        method = look(12, view=degrees)
        assert method.directions(1) == [*VIEWS[degrees], "", "", "", ""]
        assert method.head_slopes() == [1 / 2] * 8 + around


def test_other_numbers_of_heads():
    assert look(6, view=180).directions(0) == ["up", "down", "left", "right", "", ""]
    assert look(6, view=180).head_slopes() == [1 / 2] * 4 + [1 / 4, 1 / 16], "as in the authors' code"
    assert look(16, view=180).head_slopes()[8:] == [1 / 4, 1 / 4, 1 / 16, 1 / 16, 1 / 64, 1 / 64, 1 / 256, 1 / 256]
    few = look(3, depth=4, view=180)
    assert [few.directions(block)[:2] for block in range(3)] == [["up", "down"], ["left", "right"], ["up", "down"]]
    assert look(1).directions(0) == ["up left"]


def test_biases_by_hand():
    """Three blocks of six heads: layer slopes 1.5, 1, 0.5, and twice that; a diagonal costs the root of 2 times a step."""
    encoding = look(6, depth=3).encode((2, 3))
    assert len(encoding.bias) == len(encoding.mask) == 3
    slopes = torch.tensor([1 / 2] * 4 + [1 / 4, 1 / 16])
    for block, layer in enumerate((1.5, 1.0, 0.5)):
        torch.testing.assert_close(encoding.bias[block][:, 0, 1], -2 * layer * slopes)
        torch.testing.assert_close(encoding.bias[block][:, 0, 4], -2 * layer * slopes * 2**0.5)
        torch.testing.assert_close(encoding.bias[block][:, 5, 0], -2 * layer * slopes * 5**0.5)
    flat = look(6, depth=3, slope=1.0, first=1.0, last=1.0).encode((2, 3))
    torch.testing.assert_close(flat.bias[2][:, 0, 1], -slopes)
    assert torch.equal(encoding.mask[0][0], seen("up left", (2, 3)))
    assert encoding.mask[0][4:].all()


def test_a_head_sees_what_it_looks_at():
    """A change in the first row reaches what looks up from below, and no head that looks down."""
    method = small.fill(look(3, depth=1, view=180))
    changed = small.normal(1, 1, 3, 16, 16)
    image = changed.clone()
    image[..., :4, :] += 1
    outputs = {}
    block = method.core.blocks[0].attn
    for which, picture in (("before", changed), ("after", image)):
        kept = []
        handle = block.proj.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
        with torch.no_grad():
            method.predict(picture, torch.tensor([500.0]), torch.tensor([1]), method.encoding((4, 4)), None)
        handle.remove()
        outputs[which] = kept[0][0].view(4, 4, 3, 32)
    moved = (outputs["before"] - outputs["after"]).abs().amax(dim=(1, 3))  # [row, head]
    assert (moved[:, 0] > 1e-4).all(), "up"
    assert moved[1:, 1].max() < 1e-6, "down"
    assert (moved[:, 2] > 1e-4).all(), "all around"


def test_impossible_options():
    with pytest.raises(UserError, match="views of 45, 90 and 180 degrees, not 60"):
        look(3, view=60)
    with pytest.raises(UserError, match="must not be negative"):
        look(3, last=-0.5)
