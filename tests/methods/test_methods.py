"""The strategies against independent sources: transformers' rope utilities, scipy, and numbers computed by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benchmark import registry
from benchmark.files import UserError
from benchmark.model.draws import Draws
from benchmark.model.encoding import attention_scale
from benchmark.model.method import Method

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def build(name: str, train: str = "16x24", tests: tuple[str, ...] = ("16x24", "32x48"), **sections) -> Method:
    protocol = small.contest({train: list(tests)}, **sections)
    return registry.load(name)(protocol, train, 0, protocol.options.get(name, {})).eval()


def latent(name: str, head: int = 64, base: float = 10000.0, **sections) -> Method:
    """A method at the scale of the papers: 16 tokens an axis (256 pixels), heads of 64 or 72 channels."""
    core = {"width": head, "heads": 1, "depth": 1, "rope_base": base, "patch": 2}
    return build(name, "32x32", ("32x32", "64x64", "128x128"), core=core, **sections)


def transformers_frequencies(kind: str, d: int, base: float, trained: int, tested: int, **extra) -> tuple[torch.Tensor, float]:
    """The library's frequencies and attention factor for a one-dimensional model of width d."""
    parameters = {"rope_type": kind, "rope_theta": base, "factor": tested / trained, **extra}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = trained
    config = LlamaConfig(hidden_size=d, num_attention_heads=1, max_position_embeddings=trained, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=tested)


RATIOS = [(16, 32), (16, 64), (16, 24), (8, 12), (64, 256)]


@pytest.mark.parametrize("head", [64, 72])
@pytest.mark.parametrize(("trained", "tested"), RATIOS)
def test_interpolation_equals_transformers(head, trained, tested):
    ours = latent("interpolation", head).theta(trained, tested, None)
    theirs, factor = transformers_frequencies("linear", head // 2, 10000.0, trained, tested)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)
    assert factor == 1


@pytest.mark.parametrize("head", [64, 72])
@pytest.mark.parametrize(("trained", "tested"), RATIOS)
def test_ntk_equals_transformers(head, trained, tested):
    """The library's dynamic form at seq_len = tested with factor 1 stretches the base by tested / trained."""
    ours = latent("ntk", head).theta(trained, tested, None)
    theirs, _ = transformers_frequencies("dynamic", head // 2, 10000.0, trained, tested, factor=1.0)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=0)
    plain = latent("extrapolation", head).plain()
    assert ours[0] == plain[0]
    assert (plain[-1] / ours[-1]).item() == pytest.approx(tested / trained, rel=1e-9)


def test_ntk_band_ratios():
    ratios = latent("ntk", 72).theta(16, 32, None) / latent("extrapolation", 72).plain()
    assert ratios[:6].tolist() == pytest.approx([1, 0.96, 0.92, 0.885, 0.85, 0.816], abs=2e-3)


@pytest.mark.parametrize(("head", "base"), [(64, 10000.0), (72, 10000.0), (64, 100.0), (16, 10000.0)])
@pytest.mark.parametrize(("trained", "tested"), [*RATIOS, (1024, 4096), (4096, 8192)])
def test_yarn_equals_transformers(head, base, trained, tested):
    method = latent("yarn", head, base)
    theirs, factor = transformers_frequencies("yarn", head // 2, base, trained, tested)
    torch.testing.assert_close(method.theta(trained, tested, None).float(), theirs, rtol=1e-5, atol=0)
    assert method.temperature(tested / trained) == pytest.approx(factor, rel=1e-9)


def test_yarn_by_hand():
    method, plain = latent("yarn"), latent("extrapolation").plain()
    kept = (method.theta(16, 32, None) / plain - 0.5) / 0.5
    assert kept.tolist() == pytest.approx([1, 0.5] + [0] * 14, abs=1e-9)
    assert method.temperature(2) ** 2 == pytest.approx(1.143, abs=5e-4)
    tables = method.encode((16, 32)).rotary
    torch.testing.assert_close(tables[0].square() + tables[1].square(), torch.full_like(tables[0], 1.069315**2))


def test_yarn_keeps_fast_bands_on_long_grids():
    """The ramp the right way up: at 4096 tokens the fastest bands stay and the slowest are interpolated."""
    ratio = latent("yarn").theta(4096, 8192, None) / latent("extrapolation").plain()
    assert ratio[0] == 1
    assert ratio[-1].item() == pytest.approx(0.5)
    assert (ratio.diff() <= 1e-12).all()


def test_yarn_temperature_is_off_where_the_protocol_scales():
    method = latent("yarn", switches={"attention_scale": "fitv2"})
    encoding = method.encoding((32, 32))
    torch.testing.assert_close(encoding.rotary[0].square() + encoding.rotary[1].square(), torch.ones(1024, 32))
    assert encoding.logit_scale == pytest.approx(1.25)
    assert latent("yarn").encoding((32, 32)).logit_scale == 1


def test_axes_are_decoupled():
    """Only the stretched axis changes; a temperature follows the larger stretch."""
    for name in ("interpolation", "ntk", "yarn"):
        method, plain = latent(name), latent("extrapolation")
        scale = method.temperature(2.0)
        for grid_hw, same in (((32, 16), slice(16, 32)), ((16, 32), slice(0, 16)), ((8, 32), slice(0, 16))):
            ours, theirs = method.encode(grid_hw).rotary[0], plain.encode(grid_hw).rotary[0]
            torch.testing.assert_close(ours[:, same], scale * theirs[:, same])
            other = slice(16, 32) if same.start == 0 else slice(0, 16)
            assert not torch.allclose(ours[:, other], scale * theirs[:, other], atol=0.01)


@settings(max_examples=30, deadline=None)
@given(trained=st.integers(1, 64), tested=st.integers(1, 256))
def test_no_band_leaves_the_span_between_plain_and_interpolated(trained, tested):
    plain = latent("extrapolation").plain()
    squeezed = plain / max(tested / trained, 1)
    for name in ("interpolation", "ntk", "yarn"):
        theta = latent(name).theta(trained, tested, None)
        assert (theta <= plain * (1 + 1e-12)).all()
        assert (theta >= squeezed * (1 - 1e-12)).all()
        if tested <= trained:
            assert torch.equal(theta, plain)


def test_ntk_with_a_single_band():
    assert build("ntk", core={"width": 8, "heads": 2}).theta(4, 8, None).tolist() == [1.0]


# RPE-2D ----------------------------------------------------------------------------------------------------------------


def draws(step: int, rows: int) -> Draws:
    return Draws(0, step, (0, rows), rows)


def test_rpe_draws_are_sorted_distinct_and_in_range():
    method = build("rpe2d", options={"rpe2d": {"h_max": 20}})
    for axis, count in enumerate((4, 6)):
        drawn = method.positions(count, axis, draws(1, 500))
        assert drawn.shape == (500, count)
        assert (drawn.diff(dim=1) > 0).all()
        assert drawn.min() == 0
        assert drawn.max() == 19


def test_rpe_draws_every_subset_equally_often():
    drawn = draws(3, 6000).subsets(3, 6)
    counts = Counter(map(tuple, drawn.tolist()))
    subsets = list(itertools.combinations(range(6), 3))
    assert set(counts) == set(subsets)
    assert stats.chisquare([counts[subset] for subset in subsets]).pvalue > 0.001


def test_rpe_statistics_of_the_range():
    """Expected gap, P(gap = 1) and span of 16 sorted draws out of 32, 48, 64."""
    for h_max, gap, one, span in ((32, 1.94, 0.50, 29.1), (48, 2.89, 0.34, 43.3), (64, 3.82, 0.25, 57.3)):
        gaps = draws(1, 4000).subsets(16, h_max).diff(dim=1).double()
        assert gaps.mean().item() == pytest.approx(gap, rel=0.02)
        assert (gaps == 1).double().mean().item() == pytest.approx(one, abs=0.01)
        assert gaps.sum(1).mean().item() == pytest.approx(span, rel=0.01)


def test_rpe_axes_are_independent_and_samples_differ():
    method = build("rpe2d", "16x16", ("32x32",))
    tables = method.encode((4, 4), draws=draws(2, 3000)).rotary
    assert tables[0].shape == (3000, 1, 16, 8)
    angle = torch.atan2(tables[1][:, 0, :, [0, 4]], tables[0][:, 0, :, [0, 4]])  # the fastest band: position modulo 2 pi
    rows, columns = (angle[:, t, i] for t, i in ((4, 0), (1, 1)))  # second row, second column
    seen = stats.contingency.crosstab(rows.numpy().round(3), columns.numpy().round(3)).count
    assert stats.chi2_contingency(seen[np.ix_(seen.sum(1) > 200, seen.sum(0) > 200)]).pvalue > 0.001
    assert len(set(rows.tolist())) > 3


def test_rpe_test_positions_span_the_trained_range():
    method = build("rpe2d", "16x24", ("16x24", "64x64"))
    assert method.h_max == 16
    for count in (2, 4, 6, 11, 16):
        positions = method.positions(count, 0, None)
        torch.testing.assert_close(positions, torch.linspace(0, 15, count, dtype=torch.float64))
    assert method.positions(1, 0, None).tolist() == [7.5]
    assert torch.equal(method.positions(16, 0, None), torch.arange(16).double()), "the largest grid takes every position"


def test_rpe_expected_spacing_is_the_mean_of_training():
    method = build("rpe2d", options={"rpe2d": {"h_max": 20, "spacing": "expected"}})
    for count in (1, 4, 7):
        positions = method.positions(count, 0, None)
        drawn = method.positions(count, 0, draws(5, 20_000)).double()
        error = drawn.std(dim=0) / 20_000**0.5
        assert ((drawn.mean(dim=0) - positions).abs() < 5 * error).all()
        torch.testing.assert_close(positions[0] + positions[-1], torch.tensor(19.0, dtype=torch.float64))
    torch.testing.assert_close(
        method.positions(20, 0, None), torch.arange(20).double(), msg="the largest grid takes every position"
    )
    whole = [sum(subset) for subset in zip(*itertools.combinations(range(6), 3), strict=True)]
    method = build("rpe2d", "16x16", ("16x24",), options={"rpe2d": {"h_max": 6, "spacing": "expected"}})
    torch.testing.assert_close(method.positions(3, 0, None), torch.tensor(whole).double() / math.comb(6, 3))


def test_rpe_relative_conditioning_says_no_crop_alike_at_every_size():
    method = build("rpe2d")
    small.fill(method.conditioner)
    whole = torch.tensor([[h, w, 0, 0, h, w] for h, w in ((16.0, 24), (32, 48), (24, 20), (4, 4))])
    embedded = method.conditioner(whole)
    assert torch.equal(embedded, embedded[:1].expand_as(embedded))
    crops = torch.tensor([[20.0, 30, 2, 3, 16, 24]])
    torch.testing.assert_close(method.conditioner(crops), method.conditioner(2 * crops))
    for place in range(4):
        assert not torch.allclose(method.conditioner(crops), method.conditioner(crops + torch.eye(6)[place]))
    pixels = build("rpe2d", options={"rpe2d": {"conditioning": "pixels"}})
    small.fill(pixels.conditioner)
    assert not torch.allclose(pixels.conditioner(whole[:1]), pixels.conditioner(whole[1:2]))


def test_rpe_random_spacing_is_a_fixed_subset():
    method = build("rpe2d", options={"rpe2d": {"spacing": "random"}})
    rows, columns = method.positions(6, 0, None), method.positions(6, 1, None)
    assert torch.equal(rows, method.positions(6, 0, None))
    assert not torch.equal(rows, columns)
    assert (rows.diff() > 0).all()


def test_rpe_refuses_what_it_has_not_seen():
    method = build("rpe2d")
    with pytest.raises(UserError, match="13 x 4 tokens has more than h_max = 12"):
        method.encoding((13, 4))
    with pytest.raises(UserError, match="h_max 5 is smaller than the training grid"):
        build("rpe2d", options={"rpe2d": {"h_max": 5}})
    with pytest.raises(
        UserError, match=r"unknown rpe2d spacing 'evn'; did you mean 'even'\? \(there are: even, expected, random\)"
    ):
        build("rpe2d", options={"rpe2d": {"spacing": "evn"}})


def test_rpe_micro_conditioning_starts_silent_and_sees_all_six_numbers():
    method = build("rpe2d")
    crop = torch.tensor([[20.0, 30, 2, 3, 16, 24]])
    assert method.conditioner(crop).eq(0).all()
    small.fill(method.conditioner)
    first = method.conditioner(crop)
    assert first.shape == (1, 32)
    for i in range(6):
        other = crop.clone()
        other[0, i] += 1
        assert not torch.allclose(method.conditioner(other), first, atol=1e-4)


def test_rpe_augmentation_is_an_option():
    assert build("rpe2d").augmentation == ("random_resize_crop", {"largest": 1.5, "uncropped": 0.5})
    plain = build("rpe2d", options={"rpe2d": {"resize": 0.0, "micro_conditioning": False}})
    assert plain.augmentation == ("center_crop", {})
    assert plain.conditioner is None


# LEDiT -----------------------------------------------------------------------------------------------------------------

# Rows are queries, columns are keys, of a grid of 2 x 3 tokens; x may be seen.
MASKS = {
    "raster": "x.....|xx....|xxx...|xxxx..|xxxxx.|xxxxxx",
    "lower_right": "x.....|xx....|xxx...|x..x..|xx.xx.|xxxxxx",
    "neighbourhood": "xx.xx.|xxxxxx|xxx.xx|xx.xx.|xxxxxx|xxxxxx",
    "corner": "xxxx..|xxxxx.|xxxxxx|xxxxxx|xxxxxx|xxxxxx",
}


def ledit(**options) -> Method:
    return build("ledit", options={"ledit": options}, core={"depth": 6})


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
        with pytest.raises(UserError, match=rf"unknown ledit {option} '{name}'.*there are"):
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
        stem.dilation = dilation
        expected = x[0].double().clone() + stem.conv.bias.double()[:, None, None]
        for row, column, i, j in itertools.product(range(4), range(5), range(3), range(3)):
            y, z = row + dilation * (i - 1), column + dilation * (j - 1)
            if 0 <= y < 4 and 0 <= z < 5:
                expected[:, row, column] += stem.conv.weight[:, 0, i, j].double() * x[0, :, y, z]
        torch.testing.assert_close(stem(x)[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_ledit_without_the_residual_is_the_convolution_alone():
    alone, added = (small.fill(ledit(recipe="finetune", residual=residual).stem, 0.5) for residual in (False, True))
    x = small.normal(1, 1, 32, 4, 5)
    torch.testing.assert_close(alone(x), added(x) - x, rtol=1e-5, atol=1e-5)


def test_ledit_dilates_a_tenth_of_the_training_steps_and_no_test():
    method = ledit(recipe="finetune")
    dilations = Counter()
    for step in range(600):
        method.encode((4, 6), draws=draws(step, 2))
        dilations[method.stem.dilation] += 1
    assert stats.binomtest(dilations[2], 600, 0.1).pvalue > 0.001
    method.encoding((4, 6))
    for _ in range(2):  # made, then cached
        method.stem.dilation = 2
        method.encoding((4, 6))
        assert method.stem.dilation == 1
    method = ledit()
    for step in range(50):
        method.encode((4, 6), draws=draws(step, 2))
        assert method.stem.dilation == 1


@pytest.mark.parametrize("scan", ["raster", "lower_right", "corner"])
def test_ledit_variance_falls_along_the_scan(scan):
    """Independent values averaged over n visible tokens have variance 1 / n: position can be read from it."""
    grid_hw = (4, 6)
    mask = ledit(scan=scan).mask(grid_hw)
    q, k = torch.zeros(2, 1, 1, 24, 8)
    v = small.normal(1, 1, 1, 24, 20000)
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0, 0]
    variance = output.var(-1)
    torch.testing.assert_close(variance, 1 / mask.sum(1), rtol=0.1, atol=0)
    sizes = mask.sum(1).view(grid_hw)
    assert (sizes.diff(dim=0) >= 0).all()
    assert (sizes.diff(dim=1) >= 0).all()
    assert sizes[0, 0] < sizes[-1, -1] == 24


# Floors ----------------------------------------------------------------------------------------------------------------


def test_nope_cannot_tell_the_order_of_its_tokens():
    method = small.fill(build("nope", "16x16", ("16x16",)))
    image = small.normal(1, 1, 3, 16, 16)
    tokens = image.unfold(2, 4, 4).unfold(3, 4, 4).reshape(1, 3, 16, 4, 4)
    order = torch.tensor(np.random.Generator(np.random.Philox(2)).permutation(16))

    def image_of(tokens):
        return tokens.view(1, 3, 4, 4, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 16, 16)

    def run(image):
        with torch.no_grad():
            output = method.predict(image, torch.tensor([500.0]), torch.tensor([1]), method.encoding((4, 4)), None)
        return output.unfold(2, 4, 4).unfold(3, 4, 4).reshape(1, 3, 16, 4, 4)

    assert torch.equal(image_of(tokens), image)
    torch.testing.assert_close(run(image_of(tokens[:, :, order])), run(image)[:, :, order], rtol=1e-4, atol=1e-5)


def test_sincos_is_added_and_extrapolates():
    method = build("sincos")
    small_grid, large = method.encode((4, 6)).add, method.encode((8, 12)).add
    torch.testing.assert_close(large.view(8, 12, 32)[:4, :6].reshape(24, 32), small_grid)
    assert large[1, 0].item() == pytest.approx(math.sin(1), abs=1e-6), "the first half of the channels encodes the column"
    assert large[12, 16].item() == pytest.approx(math.sin(1), abs=1e-6)


def test_the_protocols_attention_scale_reaches_every_method():
    for rule in ("jin", "fitv2"):
        for name in ("extrapolation", "nope", "ledit", "rpe2d"):
            method = build(name, switches={"attention_scale": rule})
            assert method.encoding((8, 12)).logit_scale == pytest.approx(attention_scale(rule, 96, 24))
            assert method.encoding((4, 6)).logit_scale == 1
