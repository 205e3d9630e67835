"""What all rotary methods share: axes by themselves, and bands between plain and interpolated ones."""

from __future__ import annotations

import dataclasses
import math

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, latent

from benchmark.files import UserError
from benchmark.model.draws import Draws


def test_axes_are_decoupled():
    """Only the stretched axis changes; a temperature follows the larger stretch."""
    for name in ("interpolation", "ntk", "yarn"):
        method, plain = latent(name), latent("extrapolation")
        scale = method.attention_factor(2.0)
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


def test_heads_that_do_not_divide_into_two_axes_of_pairs_are_refused():
    from benchmark import protocol

    with pytest.raises(UserError, match="head width 18 is not divisible by 4"):
        protocol.load("smoke", ["core.width=36", "core.heads=2"])


@pytest.mark.parametrize(
    ("theta", "said"),
    [
        (lambda plain: 0.5, "not 0.5 (an axis of 16 tokens in training, 16 now)"),
        (lambda plain: plain.tolist()[:2], "not [1.0, "),
        (lambda plain: plain[:-1], "not one of shape [15]"),
        (lambda plain: plain.sum(), "not one of shape []"),
        (lambda plain: plain / 0, "not one with NaN or infinity"),
        (lambda plain: plain * math.nan, "not one with NaN or infinity"),
        (lambda plain: torch.cat([-plain[1:] / 0, plain[:1]]), "not one with NaN or infinity"),
    ],
)
def test_frequencies_of_another_shape_or_not_finite_are_refused(theta, said, monkeypatch):
    method = latent("extrapolation")
    monkeypatch.setattr(method, "theta", lambda trained, tested, time: theta(method.plain()))
    with pytest.raises(UserError) as error:
        method.generate("64x32", 0, [0])
    assert str(error.value).startswith("methods/extrapolation.py: theta must return a finite tensor of shape [d/2] = [16], not ")
    assert said in str(error.value).replace("32 now", "16 now")
    assert "\n" not in str(error.value)


def spoiled(encoding, field, value):
    """The encoding with one number of a field replaced."""
    wrong = encoding.rotary[0].clone()
    wrong[-1, -1] = value
    square = torch.zeros(2, len(wrong), len(wrong))
    bias = square.clone()
    bias[0, 1, 2] = value
    changes = {"rotary": (encoding.rotary[0], wrong), "add": wrong.repeat(1, 4), "bias": [square, bias], "logit_scale": value}
    return dataclasses.replace(encoding, **{field: changes[field]})


@pytest.mark.parametrize("field", ["rotary", "add", "bias", "logit_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_encoding_that_is_not_finite_is_blamed_before_anything_is_generated(field, value, monkeypatch):
    method = small.fill(build("extrapolation"))
    encode, computed = method.encode, []
    method.core.register_forward_pre_hook(lambda *_: computed.append(1))
    monkeypatch.setattr(method, "encode", lambda *args, **kwargs: spoiled(encode(*args, **kwargs), field, value))
    said = f"methods/extrapolation.py: the encoding of 4 x 6 tokens contains NaN or infinity ({field}); correct the method"
    for act in (lambda: method.generate("16x24", 0, [0]), lambda: small.loss(method)):
        with pytest.raises(UserError) as error:
            act()
        assert str(error.value) == said
    assert not computed


def test_a_refused_encoding_is_refused_again(monkeypatch):
    method = build("extrapolation")
    encode = method.encode
    monkeypatch.setattr(method, "encode", lambda *args, **kwargs: spoiled(encode(*args, **kwargs), "rotary", math.nan))
    for _ in range(2):
        with pytest.raises(UserError, match="contains NaN"):
            method.encoding((4, 6))


def test_encodings_are_checked_once_a_grid(monkeypatch):
    method, times = build("extrapolation"), []
    monkeypatch.setattr(method, "check", lambda encoding, grid_hw, batch=0: times.append(grid_hw))
    for grid_hw in ((4, 6), (8, 12), (4, 6), (8, 12)):
        method.encoding(grid_hw)
    for step in range(3):
        small.loss(method.train(), step)
    assert times == [(4, 6), (8, 12), (4, 6)]


@pytest.mark.parametrize("name", ["extrapolation", "sincos_rope", "partial_rope"])
def test_no_step_of_a_training_looks_at_values(name, monkeypatch):
    """A GPU would wait for each look."""
    method, looks = build(name), []
    monkeypatch.setattr("methods.extrapolation.is_finite", lambda theta: not looks.append(theta))
    method.encode((4, 6), draws=Draws(0, 0, (0, 2), 2, torch.device("cpu")))
    assert not looks
    method.encode((4, 6))
    assert looks
