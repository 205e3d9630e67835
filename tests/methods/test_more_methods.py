"""The further strategies: their formulas once more in numpy and by hand, against diffusers where it has them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import small
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmark import registry
from benchmark.files import UserError
from benchmark.model.draws import Draws
from benchmark.model.encoding import sincos_table
from benchmark.model.method import Method

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
D, BASE = 32, 10000.0
PLAIN = BASE ** (-np.arange(0, D, 2) / D)
GRIDS = [(16, 32), (16, 48), (64, 128), (16, 17), (512, 2048)]


def build(name: str, train: str = "16x24", tests: tuple[str, ...] = ("16x24", "32x48"), **sections) -> Method:
    protocol = small.contest({train: list(tests)}, **sections)
    return registry.load(name)(protocol, train, 0, protocol.options.get(name, {})).eval()


def latent(name: str, **sections) -> Method:
    """16 tokens an axis, heads of 64 channels, base 10000."""
    core = {"width": 64, "heads": 1, "depth": 1, "rope_base": BASE, "patch": 2}
    return build(name, "32x32", ("32x32", "64x64"), core=core, **sections)


def by_parts(trained: int, tested: int, factor: float = 1.0, plain: np.ndarray = PLAIN) -> np.ndarray:
    """Band by band: PI, then NTK, then plain, by the turns of each band."""
    s, found = tested / trained, []

    def share(j: int, fast: float, slow: float) -> float:
        low, high = (D * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(BASE)) for turns in (fast, slow))
        low, high = min(max(math.floor(low), 0), D - 1), min(max(math.ceil(high), 0), D - 1)
        return 1 - min(max((j - low) / ((high - low) or 0.001), 0), 1)

    for j, theta in enumerate(plain):
        ntk = theta ** (math.log(BASE * s ** (D / (D - 2))) / math.log(BASE))
        near, high = share(j, 1.25 * factor, 0.75 * factor), share(j, 16 * factor, 2 * factor)
        found.append(theta * high + (ntk * near + theta / s * (1 - near)) * (1 - high))
    return np.array(found)


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_ntk_by_parts(trained, tested):
    method = latent("ntk_by_parts")
    # Rounding hides small changes of a threshold on short grids.
    assert dataclasses.astuple(method.options) == (1.25, 0.75, 16, 2)
    theta = method.theta(trained, tested, None).numpy()
    np.testing.assert_allclose(theta, by_parts(trained, tested), rtol=1e-9)
    assert theta[-1] == pytest.approx(PLAIN[-1] * trained / tested)
    if trained == 512:
        assert theta[0] == 1


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
@pytest.mark.parametrize("time", [1.0, 0.7, 0.2, 0.02])
def test_dype(trained, tested, time):
    theta = latent("dype").theta(trained, tested, time).numpy()
    np.testing.assert_allclose(theta, by_parts(trained, tested, time**2), rtol=1e-9)
    ntk = latent("dype_ntk").theta(trained, tested, time).numpy()
    stretch = (tested / trained) ** (D / (D - 2) * 2 * time**2)
    np.testing.assert_allclose(ntk, (BASE * stretch) ** (-np.arange(0, D, 2) / D), rtol=1e-9)


def test_dype_ends():
    """Pure noise: by parts as it stands, and twice NTK's exponent; data: plain RoPE, and nothing jumps on the way there."""
    for name in ("dype", "dype_ntk"):
        method = latent(name)
        np.testing.assert_allclose(method.theta(16, 32, 0.0).numpy(), PLAIN, rtol=1e-12)
        np.testing.assert_allclose(method.theta(16, 32, 1e-3).numpy(), PLAIN, rtol=1e-3)
    np.testing.assert_allclose(latent("dype").theta(16, 32, 1.0), latent("ntk_by_parts").theta(16, 32, None), rtol=1e-12)
    np.testing.assert_allclose(latent("dype_ntk").theta(16, 32, math.sqrt(0.5)), latent("ntk").theta(16, 32, None), rtol=1e-9)
    assert latent("dype_ntk").theta(16, 32, 1.0)[-1] == pytest.approx(PLAIN[-1] / 4)
    assert latent("dype").temperature(2) == pytest.approx(1.0693, abs=1e-4)
    assert latent("dype_ntk").temperature(2) == 1
    with pytest.raises(UserError, match=r"unknown dype form 'yran'; did you mean 'yarn'\? \(there are: ntk, yarn\)"):
        build("dype", options={"dype": {"form": "yran"}})


@settings(max_examples=30, deadline=None)
@given(time=st.floats(0, 1), trained=st.integers(2, 64), stretch=st.floats(1, 8))
def test_dype_stretches_more_near_noise(time, trained, stretch):
    tested = round(stretch * trained)
    for name in ("dype", "dype_ntk"):
        method = latent(name)
        early, late = method.theta(trained, tested, 1.0), method.theta(trained, tested, time)
        assert (early <= late * (1 + 1e-9)).all()
        assert (late.numpy() <= PLAIN * (1 + 1e-9)).all()


def test_timed_methods_make_an_encoding_for_every_level():
    method = build("dype")
    one, two = method.encoding((8, 12), 0.9), method.encoding((8, 12), 0.2)
    assert not torch.equal(one.rotary[0], two.rotary[0])
    assert torch.equal(method.encoding((8, 12), 0.9).rotary[0], one.rotary[0])
    levels = []
    theta = type(method).theta
    method.theta = lambda trained, tested, time: levels.append(time) or theta(method, trained, tested, time)
    method.generate("32x48", 0, [0])
    assert levels == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3], abs=1e-6)


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_time_aware_rope_equals_diffusers(trained, tested):
    method, s = latent("tasr"), tested / trained
    for time, factors in (
        (1.0, {"linear_factor": s}),
        (0.71, {"linear_factor": s}),
        (0.7, {"ntk_factor": s}),
        (0.0, {"ntk_factor": s}),
    ):
        angle = get_1d_rotary_pos_embed(D, np.array([1.0]), BASE, freqs_dtype=torch.float64, **factors).angle()[0]
        np.testing.assert_allclose(method.theta(trained, tested, time).numpy(), angle.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_imax(trained, tested):
    theta = latent("imax").theta(trained, tested, None).numpy()
    expected = [max((10 * BASE) ** (-2 * j / D), BASE ** (-2 * j / D) * trained / tested) for j in range(D // 2)]
    np.testing.assert_allclose(theta, expected, rtol=1e-12)
    assert theta[0] == 1


@pytest.mark.parametrize(("name", "share"), [("rifle", 0.9), ("rdfc", 1.0)])
@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_one_band_is_slowed(name, share, trained, tested):
    ours = latent(name).theta(trained, tested, None).numpy()
    k = min(range(D // 2), key=lambda j: abs(2 * math.pi * BASE ** (2 * j / D) - trained))
    assert ours[k] * tested / (2 * math.pi) == pytest.approx(share)
    np.testing.assert_array_equal(np.delete(ours, k), np.delete(latent("extrapolation").plain().numpy(), k))
    if trained == 16:
        assert k == 2, "periods are 6.3, 11.2, 19.9, 35.3 ..."


@pytest.mark.parametrize(("trained", "tested"), GRIDS)
def test_resonance(trained, tested):
    method = latent("resonance")
    moved = [2 * math.pi * round(r) / trained if (r := trained * theta / (2 * math.pi)) >= 1 else theta for theta in PLAIN]
    np.testing.assert_allclose(method.theta(trained, tested, None), by_parts(trained, tested, plain=np.array(moved)), rtol=1e-9)
    assert moved[0] * trained / (2 * math.pi) == pytest.approx(round(trained / (2 * math.pi)))
    np.testing.assert_array_equal(method.theta(trained, trained, None), latent("extrapolation").plain())
    assert method.temperature(2) == pytest.approx(1.0693, abs=1e-4)


def test_attention_scale_is_a_factor_on_the_logits_alone():
    for rule, expected in (("jin", 1.118), ("fitv2", 1.25)):
        method = latent("attention_scale", options={"attention_scale": {"rule": rule}})
        encoding = method.encoding((32, 32))
        assert encoding.logit_scale == pytest.approx(expected, abs=5e-4)
        assert torch.equal(encoding.rotary[0], latent("extrapolation").encode((32, 32)).rotary[0])
    assert latent("attention_scale").encoding((32, 32)).logit_scale == pytest.approx(1.118, abs=5e-4), "jin unless told otherwise"
    stacked = latent("attention_scale", switches={"attention_scale": "fitv2"})
    assert stacked.encoding((32, 32)).logit_scale == pytest.approx(1.25), "the protocol's scale alone"
    with pytest.raises(UserError, match=r"unknown attention_scale rule 'gin'.*fitv2, jin"):
        latent("attention_scale", options={"attention_scale": {"rule": "gin"}})


def test_sincos_interpolated():
    method = build("sincos_interp", "16x24", ("16x24", "32x24"))
    table = method.encode((8, 6)).add
    rows, columns = torch.meshgrid(torch.arange(8) / 2, torch.arange(6.0), indexing="ij")
    torch.testing.assert_close(table, sincos_table(rows.flatten(), columns.flatten(), 32))
    assert torch.equal(table.view(8, 6, 32)[::2], build("sincos").encode((4, 6)).add.view(4, 6, 32))
    assert torch.equal(method.encode((3, 6)).add, build("sincos").encode((3, 6)).add), "a smaller grid is not stretched"


def keys(distance: float, a: float = -0.75) -> float:
    """The bicubic kernel (Keys 1981) with the parameter of torch and OpenCV."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)


def test_learned_table():
    method = build("learned")
    assert method.table.shape == (1, 32, 4, 6)
    assert method.table.requires_grad
    assert abs(method.table.std() - 0.02) < 0.003
    assert torch.equal(method.encode((4, 6)).add, method.table[0].flatten(1).T)
    with torch.no_grad():
        method.table.copy_(torch.arange(6.0).expand(1, 32, 4, 6))
    larger = method.encode((8, 12)).add.view(8, 12, 32)
    near, far = (keys(0.25), keys(0.75)), (keys(1.25), keys(1.75))  # weights of the tokens on either side
    centre = 1 * near[1] + 2 * near[0] + 0 * far[1] + 3 * far[0]
    assert larger[3, 4, 0].item() == pytest.approx(centre, abs=1e-5), "1.75 between tokens 1 and 2"
    assert torch.equal(larger[0], larger[7])
    before = method.encoding((8, 12)).add.clone()
    with torch.no_grad():
        method.table.add_(1)
    assert not torch.equal(before, method.encoding((8, 12)).add), "a table that was trained on is not cached"


def test_attribution_rows():
    positions, augmented, both = (build(name) for name in ("rpe2d_positions", "rope_augmented", "rpe2d"))
    assert positions.augmentation == ("center_crop", {})
    assert positions.conditioner is None
    assert torch.equal(positions.encode((8, 12)).rotary[0], both.encode((8, 12)).rotary[0])
    assert augmented.augmentation == both.augmentation == ("random_resize_crop", {"largest": 1.5, "uncropped": 0.5})
    assert {n for n, _ in augmented.named_parameters()} == {n for n, _ in both.named_parameters()}
    plain = build("extrapolation")
    drawn = Draws(0, 1, (0, 2), 2)
    for encoding in (augmented.encode((4, 6), draws=drawn), augmented.encode((8, 12))):
        grid = (4, 6) if len(encoding.rotary[0]) == 24 else (8, 12)
        assert torch.equal(encoding.rotary[0], plain.encode(grid).rotary[0])


def test_ledit_layers_and_norm_are_options_of_their_own():
    core = {"depth": 6}
    assert build("ledit", core=core).causal_blocks() == [1]
    assert build("ledit", core=core, options={"ledit": {"layers": "alternating"}}).causal_blocks() == [1, 3, 5]
    assert build("ledit", core=core, options={"ledit": {"recipe": "finetune", "layers": "single"}}).causal_blocks() == [1]
    assert build("ledit").stem.norm is not None
    assert build("ledit", options={"ledit": {"norm": False}}).stem.norm is None
    with pytest.raises(UserError, match=r"unknown ledit layers 'three' \(there are: alternating, single\)"):
        build("ledit", options={"ledit": {"layers": "three"}})


def test_ledit_finetune_is_ledit_by_another_recipe():
    ours, other = build("ledit_finetune"), build("ledit", options={"ledit": {"recipe": "finetune"}})
    assert ours.causal_blocks() == other.causal_blocks() == [1]
    assert ours.state_dict().keys() == other.state_dict().keys()
    assert ours.options == type(ours).Options()
    assert ours.stem.norm is None


# Randomized positions on the sequence --------------------------------------------------------------------------------


def angles(encoding) -> torch.Tensor:
    """The fastest band's angle of every token, [..., T]."""
    return torch.atan2(encoding.rotary[1][..., 0], encoding.rotary[0][..., 0])


def test_randomized_1d_draws():
    method = build("randomized_1d", options={"randomized_1d": {"l_max": 40}})
    drawn = method.positions(24, Draws(0, 1, (0, 300), 300))
    assert drawn.shape == (300, 24)
    assert (drawn.diff(dim=1) > 0).all()
    assert (drawn.min(), drawn.max()) == (0, 39)
    method = build("randomized_1d", options={"randomized_1d": {"l_max": 26, "draw": "batch"}})
    subsets = Counter(tuple(method.positions(24, Draws(0, i, (0, 4), 4)).tolist()) for i in range(3000))
    assert len(subsets) == math.comb(26, 24)
    assert stats.chisquare(list(subsets.values())).pvalue > 0.001
    tables = method.encode((4, 6), draws=Draws(0, 1, (0, 4), 4)).rotary
    assert tables[0].shape == (24, 8)


def test_randomized_1d_runs_along_the_raster():
    method = build("randomized_1d", "16x24", ("16x24", "32x24"))
    assert method.l_max == 48
    position = torch.arange(24).double() * 47 / 23
    torch.testing.assert_close(method.positions(24, None), position)
    expected = torch.atan2(position.sin(), position.cos()).float()
    torch.testing.assert_close(angles(method.encode((4, 6))), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(angles(method.encode((6, 4))), expected, rtol=0, atol=1e-5)
    assert torch.equal(method.positions(48, None), torch.arange(48).double())
    last = method.encode((8, 6)).rotary[1][1, -1].item()
    assert last == pytest.approx(math.sin(100 ** (-14 / 16)), rel=1e-5), "one axis turns the whole head"


def test_randomized_1d_refuses():
    with pytest.raises(UserError, match="8 x 13 has more tokens than l_max = 96"):
        build("randomized_1d").encoding((8, 13))
    with pytest.raises(UserError, match="l_max 20 is smaller than the training grid's 24 tokens"):
        build("randomized_1d", options={"randomized_1d": {"l_max": 20}})
    with pytest.raises(UserError, match=r"unknown randomized_1d draw 'step'.*batch, sample"):
        build("randomized_1d", options={"randomized_1d": {"draw": "step"}})
    fixed = build("randomized_1d", options={"randomized_1d": {"spacing": "random"}})
    assert torch.equal(fixed.positions(24, None), fixed.positions(24, None))
    assert (fixed.positions(24, None).diff() > 0).all()


# Bad input -----------------------------------------------------------------------------------------------------------


def test_options_of_the_wrong_type_are_refused():
    with pytest.raises(UserError, match=r"^YaRN: .*'many'"):
        build("yarn", options={"yarn": {"beta_fast": "many"}})


def test_heads_that_do_not_divide_into_two_axes_of_pairs_are_refused():
    from benchmark import protocol

    with pytest.raises(UserError, match="head width 18 is not divisible by 4"):
        protocol.validate(small.contest(core={"width": 36, "heads": 2}))


@pytest.mark.parametrize("name", registry.names())
def test_a_training_grid_of_one_token_or_one_row(name):
    for train in ("4x4", "4x16"):
        method = small.fill(build(name, train, (train, "8x8"))).eval()
        assert small.loss(method).isfinite()
        assert method.generate("8x8" if train == "4x4" else train, 0, [0, 1]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yarn", {"beta_fast": 0.5}, "0 < beta_slow < beta_fast"),
        ("yarn", {"beta_slow": -1.0}, "0 < beta_slow < beta_fast"),
        ("imax", {"factor": 0.0}, "positive factor"),
    ],
)
def test_impossible_options(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.load(name).make_options(options)
