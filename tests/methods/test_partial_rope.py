"""Partial RoPE against transformers' partial rotary factor; the channels that stay; both ends of the spectrum."""

from __future__ import annotations

import pytest
import torch
from strategies import build, latent
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benchmark.files import UserError


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("head", [64, 128])
def test_equals_transformers(head, share):
    """Their one-dimensional model of an axis' width, of which a share turns."""
    theta = latent("partial_rope", head, options={"partial_rope": {"share": share}}).theta(16, 16, None)
    parameters = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 1.0, "partial_rotary_factor": share}
    config = LlamaConfig(hidden_size=head // 2, num_attention_heads=1, rope_parameters=parameters)
    theirs, _ = ROPE_INIT_FUNCTIONS["linear"](config, torch.device("cpu"))
    turning = len(theirs)
    assert turning == share * head / 4
    torch.testing.assert_close(theta[:turning].float(), theirs, rtol=1e-6, atol=0)
    assert theta[turning:].eq(0).all()


def test_table_by_hand():
    """2 x 3 tokens, heads of 16 channels, base 100: of four bands an axis two turn, by 1 and by 1/10 radian a token."""
    cos, sin = build("partial_rope").encode((2, 3)).rotary
    angle = torch.tensor([[y, 0.1 * y, 0, 0, x, 0.1 * x, 0, 0] for y in (0.0, 1.0) for x in (0.0, 1.0, 2.0)])
    torch.testing.assert_close(cos, angle.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, angle.sin(), rtol=0, atol=1e-6)


def test_with_all_bands_it_is_plain_rope():
    every = build("partial_rope", options={"partial_rope": {"share": 1.0}})
    assert torch.equal(every.encode((8, 3)).rotary[0], build("extrapolation").encode((8, 3)).rotary[0])
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match=r"a share of the bands in \(0, 1\]"):
            build("partial_rope", options={"partial_rope": {"share": share}})
