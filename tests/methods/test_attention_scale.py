"""The factor on the logits, a method's own and the protocol's."""

from __future__ import annotations

import pytest
import torch
from strategies import build, latent

from benchmark.files import UserError
from benchmark.model.encoding import attention_scale


def test_the_protocols_attention_scale_reaches_every_method():
    for rule in ("jin", "fitv2"):
        for name in ("extrapolation", "nope", "ledit", "rpe2d"):
            method = build(name, switches={"attention_scale": rule})
            assert method.encoding((8, 12)).logit_scale == pytest.approx(attention_scale(rule, 96, 24))
            assert method.encoding((4, 6)).logit_scale == 1


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
