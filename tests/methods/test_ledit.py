"""LEDiT: masks as drawn, recipes, the convolution by hand, dilation, and what the masks tell of positions."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import small
import torch
from scipy import stats
from strategies import build

from benchmark.files import UserError
from benchmark.model.draws import Draws
from benchmark.model.method import Method

# Rows are queries, columns are keys, of a grid of 2 x 3 tokens; x may be seen.
MASKS = {
    "raster": "x.....|xx....|xxx...|xxxx..|xxxxx.|xxxxxx",
    "lower_right": "x.....|xx....|xxx...|x..x..|xx.xx.|xxxxxx",
    "neighbourhood": "xx.xx.|xxxxxx|xxx.xx|xx.xx.|xxxxxx|xxxxxx",
    "corner": "xxxx..|xxxxx.|xxxxxx|xxxxxx|xxxxxx|xxxxxx",
}


def ledit(**options) -> Method:
    return build("ledit", options={"ledit": options}, core={"depth": 6})


def draws(step: int) -> Draws:
    return Draws(0, step, (0, 2), 2)


@pytest.mark.parametrize("scan", MASKS)
def test_ledit_masks_as_drawn(scan):
    method = ledit(scan=scan)
    drawn = torch.tensor([[letter == "x" for letter in row] for row in MASKS[scan].split("|")])
    assert torch.equal(method.mask((2, 3)), drawn)
    mask = method.encode((2, 3)).mask[1]
    assert mask == "causal" if scan == "raster" else torch.equal(mask, drawn)
    assert method.mask((2, 3)) is method.mask((2, 3)), "built once a grid"


def test_ledit_recipes():
    for options, causal in (({}, [1]), ({"recipe": "finetune"}, [1, 3, 5]), ({"causal": False}, [])):
        method = ledit(**options)
        assert [i for i, mask in enumerate(method.encode((4, 6)).mask) if mask is not None] == causal
    assert ledit().stem.norm is not None
    assert ledit(recipe="finetune").stem.norm is None
    assert ledit(convolution=False).stem is None
    assert ledit(depthwise=False).stem.conv.weight.shape == (32, 32, 3, 3)
    assert ledit().stem.conv.weight.shape == (32, 1, 3, 3)
    for option, name in (("scan", "zigzag"), ("recipe", "cake")):
        with pytest.raises(UserError, match=rf"unknown ledit {option} '{name}'.*choose from"):
            ledit(**{option: name})


def test_ledit_stem_starts_as_the_identity():
    x = small.normal(1, 2, 32, 3, 5)
    assert torch.equal(ledit(recipe="finetune").stem(x), x)
    torch.testing.assert_close(ledit().stem(x), torch.nn.functional.layer_norm(x.movedim(1, -1), (32,), eps=1e-6).movedim(-1, 1))


def test_ledit_convolution_by_hand():
    """Each channel by itself, zeros outside, at both dilations."""
    stem = small.fill(ledit(recipe="finetune").stem, 0.5)
    x = small.normal(1, 1, 32, 4, 5)
    for dilation in (1, 2):
        expected = x[0].double().clone() + stem.conv.bias.double()[:, None, None]
        for row, column, i, j in itertools.product(range(4), range(5), range(3), range(3)):
            y, z = row + dilation * (i - 1), column + dilation * (j - 1)
            if 0 <= y < 4 and 0 <= z < 5:
                expected[:, row, column] += stem.conv.weight[:, 0, i, j].double() * x[0, :, y, z]
        torch.testing.assert_close(stem(x, dilation=dilation)[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_ledit_without_the_residual_is_the_convolution_alone():
    alone, added = (small.fill(ledit(recipe="finetune", residual=residual).stem, 0.5) for residual in (False, True))
    x = small.normal(1, 1, 32, 4, 5)
    torch.testing.assert_close(alone(x), added(x) - x, rtol=1e-5, atol=1e-5)


def test_ledit_dilates_a_tenth_of_the_training_steps_and_no_test():
    method = ledit(recipe="finetune")
    dilations = Counter(method.encode((4, 6), draws=draws(step)).stem.get("dilation", 1) for step in range(600))
    assert dilations.keys() == {1, 2}
    assert stats.binomtest(dilations[2], 600, 0.1).pvalue > 0.001
    assert method.encoding((4, 6)).stem == {}
    method = ledit()
    for step in range(50):
        assert method.encode((4, 6), draws=draws(step)).stem == {}


def test_ledit_dilation_reaches_the_convolution():
    """A dilated step has another loss than the same step without, and leaves nothing behind for the next one."""
    never, always = (ledit(recipe="finetune", dilated=share) for share in (0.0, 1.0))
    small.fill(never), small.fill(always)
    assert never.state_dict().keys() == always.state_dict().keys()
    assert not torch.equal(small.loss(never), small.loss(always))
    assert torch.equal(never.generate("16x24", 0, [0]), always.generate("16x24", 0, [0])), "no dilation at test"


@pytest.mark.parametrize("scan", ["raster", "lower_right", "corner"])
def test_ledit_sees_more_tokens_along_the_scan(scan):
    """Independent values averaged over n visible tokens have variance 1 / n: position can be read from it."""
    grid_hw = (4, 6)
    sizes = ledit(scan=scan).mask(grid_hw).sum(1).view(grid_hw)
    assert (sizes.diff(dim=0) >= 0).all()
    assert (sizes.diff(dim=1) >= 0).all()
    assert sizes[0, 0] < sizes[-1, -1] == 24


def test_ledit_finetune_is_ledit_by_another_recipe():
    ours, other = build("ledit_finetune"), build("ledit", options={"ledit": {"recipe": "finetune"}})
    assert ours.causal_blocks() == other.causal_blocks() == [1]
    assert ours.state_dict().keys() == other.state_dict().keys()
    assert ours.options == type(ours).Options()
    assert ours.stem.norm is None


def test_ledit_layers_and_norm_are_options_of_their_own():
    core = {"depth": 6}
    assert build("ledit", core=core).causal_blocks() == [1]
    assert build("ledit", core=core, options={"ledit": {"layers": "alternating"}}).causal_blocks() == [1, 3, 5]
    assert build("ledit", core=core, options={"ledit": {"recipe": "finetune", "layers": "single"}}).causal_blocks() == [1]
    assert build("ledit").stem.norm is not None
    assert build("ledit", options={"ledit": {"norm": False}}).stem.norm is None
    with pytest.raises(UserError, match=r"unknown ledit layers 'three' \(choose from: alternating, single\)"):
        build("ledit", options={"ledit": {"layers": "three"}})
