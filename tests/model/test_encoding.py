"""The encodings' arithmetic against transformers, timm, diffusers and numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import small
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from strategies import transformers_frequencies
from timm.layers import pos_embed_sincos

from benchmark import registry
from benchmark.model.encoding import Encoding, attention_scale, frequencies, rotary, rotate, sincos_table, token_yx


def test_tokens_run_row_by_row():
    y, x = token_yx((2, 3))
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("width", "base"), [(32, 10000.0), (36, 10000.0), (16, 100.0), (2, 100.0)])
def test_frequencies_equal_transformers(width, base):
    theirs, _ = transformers_frequencies("linear", width, base, 16, 16)
    ours = frequencies(width, base)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)
    assert ours[0] == 1
    assert ours[-1].item() == pytest.approx(base ** (2 / width - 1), rel=1e-12)


def test_frequencies_refuse_odd_widths():
    with pytest.raises(ValueError, match="must be even, not 9"):
        frequencies(9, 100.0)


@pytest.mark.parametrize("grid_hw", [(2, 3), (3, 2), (1, 5), (16, 16)])
def test_tables_equal_timm(grid_hw):
    """timm's axial table: the same bands, y before x, every angle twice."""
    theirs = pos_embed_sincos.RotaryEmbeddingCat(16, in_pixels=False, feat_shape=list(grid_hw), temperature=10000.0)
    sin, cos = theirs.get_embed().chunk(2, -1)
    ours = rotary(*map(torch.arange, grid_hw), frequencies(8, 10000.0), frequencies(8, 10000.0))
    torch.testing.assert_close(ours[0].repeat_interleave(2, -1), cos, rtol=0, atol=2e-6)
    torch.testing.assert_close(ours[1].repeat_interleave(2, -1), sin, rtol=0, atol=2e-6)


def test_rotation_equals_timm():
    q = torch.randn(1, 2, 6, 16, generator=torch.Generator().manual_seed(0))
    embed = pos_embed_sincos.RotaryEmbeddingCat(16, in_pixels=False, feat_shape=[2, 3], temperature=10000.0).get_embed()
    tables = rotary(torch.arange(2), torch.arange(3), frequencies(8, 10000.0), frequencies(8, 10000.0))
    ours = rotate(q, torch.stack(tables, -1))
    torch.testing.assert_close(ours, pos_embed_sincos.apply_rot_embed_cat(q, embed), rtol=1e-5, atol=1e-5)


def test_rotation_on_two_by_three_by_hand():
    """One head of 4 channels: pair 0 turns by the row, pair 1 by the column."""
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]]).expand(1, 1, 6, 4)
    theta = torch.tensor([math.pi / 2])
    turned = rotate(x, torch.stack(rotary(torch.arange(2), torch.arange(3), theta, theta), -1))[0, 0]
    expected = [[1, 0, 0, 2], [1, 0, -2, 0], [1, 0, 0, -2], [0, 1, 0, 2], [0, 1, -2, 0], [0, 1, 0, -2]]
    torch.testing.assert_close(turned, torch.tensor(expected).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_keeps_type_and_compiles_to_the_same(dtype, monkeypatch):
    q = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    turns = torch.stack(rotary(torch.arange(2), torch.arange(3), frequencies(4, 10.0), frequencies(4, 10.0)), -1)
    eager = rotate(q, turns)
    assert eager.dtype == dtype
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(q, turns), eager, rtol=0.01 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_large_positions_lose_nothing():
    cos, sin = rotary(torch.tensor([10**6]), torch.tensor([0]), torch.tensor([1.0]), torch.tensor([1.0]))
    assert cos[0, 0].item() == pytest.approx(math.cos(10**6), abs=1e-7)
    assert sin[0, 0].item() == pytest.approx(math.sin(10**6), abs=1e-7)
    assert (cos[0, 1], sin[0, 1]) == (1, 0)


def test_tables_of_samples_are_those_of_each():
    rows, columns = torch.tensor([[0, 3], [1, 9]]), torch.tensor([[2, 4, 8], [0, 1, 5]])
    theta = frequencies(8, 100.0)
    both = rotary(rows, columns, theta, theta, 1.5)
    for i in range(2):
        for ours, one in zip(both, rotary(rows[i], columns[i], theta, theta, 1.5), strict=True):
            assert ours.shape == (2, 6, 8)
            assert torch.equal(ours[i], one)


def test_scores_depend_on_differences_of_positions():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator)
    theta = frequencies(8, 100.0)

    def score(at_q, at_k):
        def turns(at):
            tables = rotary(torch.tensor([at[0]]), torch.tensor([at[1]]), theta, theta)
            return torch.stack(tables, -1)

        return (rotate(q[None], turns(at_q)) @ rotate(k[None], turns(at_k)).T).item()

    first = score((3, 5), (1, 9))
    assert score((13, 105), (11, 109)) == pytest.approx(first, abs=1e-5)
    assert abs(score((5, 3), (9, 1)) - first) > 1e-3, "y and x are told apart"


@pytest.mark.parametrize(("grid_hw", "width"), [((2, 3), 16), ((5, 1), 24), ((4, 4), 64)])
def test_sincos_table_by_hand(grid_hw, width):
    table = sincos_table(*token_yx(grid_hw), width)
    quarter = width // 4
    for t in range(grid_hw[0] * grid_hw[1]):
        row, column = divmod(t, grid_hw[1])
        for k in range(quarter):
            omega = 10000 ** (-k / quarter)
            expected = [math.sin(column * omega), math.cos(column * omega), math.sin(row * omega), math.cos(row * omega)]
            assert table[t, k::quarter].tolist() == pytest.approx(expected, abs=1e-6)


def test_sincos_table_equals_diffusers():
    theirs = get_2d_sincos_pos_embed(64, 8, output_type="pt", base_size=8)
    torch.testing.assert_close(sincos_table(*token_yx((8, 8)), 64).double(), theirs.double(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4, not 18"):
        sincos_table(*token_yx((2, 2)), 18)


def test_attention_scale_from_256_to_512():
    assert attention_scale("jin", 1024, 256) == pytest.approx(1.118, abs=5e-4)
    assert attention_scale("fitv2", 1024, 256) == pytest.approx(1.250, abs=5e-4)
    assert attention_scale("fitv2", 64, 256) == 1
    assert attention_scale("jin", 64, 256) == pytest.approx(math.sqrt(6 / 8))
    for rule in ("none", "jin", "fitv2"):
        assert attention_scale(rule, 256, 256) == 1
        assert attention_scale(rule, 1, 16) == 1
    assert attention_scale("none", 1024, 256) == 1


def test_an_empty_encoding_changes_nothing():
    model = small.fill(registry.load("nope")(small.protocol(), "16x24", 0), 0.15).eval()
    x, label = small.normal(1, 2, 3, 16, 24), torch.tensor([1, 2])
    tokens, rotary_width = math.prod(model.protocol.grid("16x24")), model.protocol.core.width // model.protocol.core.heads // 2
    neutral = Encoding(
        add=torch.zeros(tokens, model.protocol.core.width),
        rotary=(torch.ones(tokens, rotary_width), torch.zeros(tokens, rotary_width)),
        bias=[torch.zeros(model.protocol.core.heads, tokens, tokens)] * model.protocol.core.depth,
    )
    plain, other = (model.core(x, torch.full((2,), 0.5), label, encoding) for encoding in (Encoding(), neutral))
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-6)
