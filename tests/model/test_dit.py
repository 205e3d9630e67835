"""The core against diffusers' DiT bit for bit, and on rectangles against its definition written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small
import torch
from diffusers import DiTTransformer2DModel

from benchmark.model.dit import Core, attend, gelu, sinusoids
from benchmark.model.encoding import Encoding, rotary, sincos_table, token_yx


def core(width=32, depth=2, heads=2, patch=2, channels=4, classes=10, **kw) -> Core:
    sizes = {"width": width, "depth": depth, "heads": heads, "patch": patch, "channels": channels, "classes": classes}
    return Core(**sizes, out_channels=2 * channels, **kw)


def peer(width: int, depth: int, heads: int, patch: int, side: int, classes: int) -> DiTTransformer2DModel:
    """diffusers' DiT with its two departures from the published model undone, one condition for all blocks, random weights."""
    model = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=4, out_channels=8, num_layers=depth,
        sample_size=side, patch_size=patch, num_embeds_ada_norm=classes, norm_eps=1e-6,
    )  # fmt: skip
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    model.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 0
    return small.fill(model, 0.05).eval()


def from_peer(model: DiTTransformer2DModel) -> dict[str, torch.Tensor]:
    """Its weights under the published names."""
    theirs, embedder = model.state_dict(), "transformer_blocks.0.norm1.emb."
    names = {"x_embedder.proj": "pos_embed.proj", "t_embedder.mlp.0": embedder + "timestep_embedder.linear_1",
             "t_embedder.mlp.2": embedder + "timestep_embedder.linear_2", "final_layer.linear": "proj_out_2",
             "final_layer.adaLN_modulation.1": "proj_out_1"}  # fmt: skip
    for i in range(len(model.transformer_blocks)):
        ours, block = f"blocks.{i}.", f"transformer_blocks.{i}."
        names |= {ours + "attn.proj": block + "attn1.to_out.0", ours + "mlp.fc1": block + "ff.net.0.proj",
                  ours + "mlp.fc2": block + "ff.net.2", ours + "adaLN_modulation.1": block + "norm1.linear"}  # fmt: skip
    state = {f"{to}.{part}": theirs[f"{of}.{part}"] for to, of in names.items() for part in ("weight", "bias")}
    for i in range(len(model.transformer_blocks)):
        for part in ("weight", "bias"):
            parts = [theirs[f"transformer_blocks.{i}.attn1.to_{k}.{part}"] for k in "qkv"]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(parts)
    return state | {"y_embedder.embedding_table.weight": theirs[embedder + "class_embedder.embedding_table.weight"]}


SIZES = [(64, 3, 4, 2, 16), (72, 2, 1, 2, 8), (384, 2, 6, 2, 32), (128, 2, 2, 4, 32), (64, 1, 1, 8, 32)]


@pytest.mark.parametrize(("width", "depth", "heads", "patch", "side"), SIZES)
def test_equals_diffusers_bit_for_bit(width, depth, heads, patch, side):
    theirs = peer(width, depth, heads, patch, side, 10)
    ours = core(width, depth, heads, patch)
    ours.load_state_dict(from_peer(theirs))
    y, x = token_yx((side // patch,) * 2)
    encoding = Encoding(add=sincos_table(y, x, width))
    image, time, label = small.normal(1, 3, 4, side, side), torch.tensor([0.0, 500, 999]), torch.tensor([1, 10, 5])
    with torch.no_grad():
        output = theirs(image, time, label).sample
        assert output.std() > 0.01
        assert torch.equal(ours(image, time, label, encoding), output)


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def by_definition(weights, x, time, label, grid_hw, heads, patch, out, add, angle, mask, bias, scale, condition):
    """One image through the model, token by token, in float64. angle: [blocks, H, T, K/2]; mask, bias: [blocks, H, T, T]."""
    w = {key: value.detach().double().numpy() for key, value in weights.items()}

    def linear(name, value):
        return value @ w[name + ".weight"].T + w[name + ".bias"]

    def silu(value):
        return value / (1 + np.exp(-value))

    tokens = []
    for row in range(grid_hw[0]):
        for column in range(grid_hw[1]):
            cut = x[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append((w["x_embedder.proj.weight"] * cut).sum((1, 2, 3)) + w["x_embedder.proj.bias"])
    z = np.stack(tokens) + add
    frequency = np.exp(-math.log(10000) * np.arange(128) / 128)
    wave = np.concatenate([np.cos(time * frequency), np.sin(time * frequency)])
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", wave)))
    c = silu(c + w["y_embedder.embedding_table.weight"][label] + condition)
    width = z.shape[1]
    for i in range(len(mask)):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", c).reshape(6, width)
        qkv = linear(f"blocks.{i}.attn.qkv", layer_norm(z) * (1 + parts[1]) + parts[0]).reshape(len(z), 3, heads, -1)
        mixed = np.zeros((len(z), heads, width // heads))
        for head in range(heads):
            q, k = (qkv[:, j, head, 0::2] + 1j * qkv[:, j, head, 1::2] for j in (0, 1))
            q, k = q * np.exp(1j * angle[i, head]), k * np.exp(1j * angle[i, head])
            logits = (q @ k.conj().T).real * scale / math.sqrt(width // heads) + bias[i, head]
            weight = np.exp(logits) * mask[i, head]
            mixed[:, head] = weight / weight.sum(1, keepdims=True) @ qkv[:, 2, head]
        z = z + parts[2] * linear(f"blocks.{i}.attn.proj", mixed.reshape(len(z), width))
        hidden = linear(f"blocks.{i}.mlp.fc1", layer_norm(z) * (1 + parts[4]) + parts[3])
        hidden = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        z = z + parts[5] * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, factor = linear("final_layer.adaLN_modulation.1", c).reshape(2, width)
    z = linear("final_layer.linear", layer_norm(z) * (1 + factor) + shift)
    image = np.zeros((out, grid_hw[0] * patch, grid_hw[1] * patch))
    for t, values in enumerate(z.reshape(-1, patch, patch, out)):
        row, column = divmod(t, grid_hw[1])
        place = slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch)
        image[:, *place] = values.transpose(2, 0, 1)
    return image


@pytest.mark.parametrize(("grid_hw", "patch"), [((3, 5), 2), ((5, 2), 4), ((1, 4), 2), ((1, 1), 2)])
def test_rectangles_equal_the_definition(grid_hw, patch):
    h, w = grid_hw
    tokens, depth, heads, width = h * w, 3, 2, 32
    model = small.fill(core(width, depth, heads, patch), 0.2)
    add, condition = small.normal(2, tokens, width), small.normal(3, 2, width)
    theta_y, theta_x = torch.tensor([1.0, 0.3, 0.1, 0.03]), torch.tensor([0.9, 0.2, 0.05, 0.01])
    seen = torch.from_numpy(np.random.Generator(np.random.Philox(5)).random((tokens, tokens)) < 0.5) | torch.eye(tokens).bool()
    tables = rotary(torch.arange(h), torch.arange(w), theta_y, theta_x)
    encoding = Encoding(add=add, rotary=tables, mask=[None, seen, "causal"], logit_scale=1.3)
    image, time, label = small.normal(4, 2, 4, h * patch, w * patch), torch.tensor([3.0, 777]), torch.tensor([10, 4])
    with torch.no_grad():
        ours = model(image, time, label, encoding, None, condition)
    angle = np.array([[*(y * theta_y.double().numpy()), *(x * theta_x.double().numpy())] for y in range(h) for x in range(w)])
    every = np.ones((depth, heads, tokens, tokens))
    masks = every * np.stack([every[0, 0], seen.numpy(), np.tril(every[0, 0])])[:, None]
    angle = np.broadcast_to(angle, (depth, heads, *angle.shape))
    for i in range(2):
        exact = by_definition(model.state_dict(), image[i].numpy(), time[i].item(), label[i].item(), grid_hw, heads, patch, 8,
                              add.numpy(), angle, masks, 0 * every, 1.3, condition[i].numpy())  # fmt: skip
        np.testing.assert_allclose(ours[i].numpy(), exact, rtol=1e-4, atol=1e-4 * exact.std())


@pytest.mark.parametrize(("grid_hw", "patch"), [((3, 5), 2), ((5, 2), 4), ((1, 1), 2)])
def test_fields_of_every_head_and_block_equal_the_definition(grid_hw, patch):
    """Turns, masks and biases that differ between heads and blocks, in every combination that a block may have."""
    tokens, depth, heads, width = math.prod(grid_hw), 5, 2, 32
    model = small.fill(core(width, depth, heads, patch), 0.2)
    square = (tokens, tokens)
    seen = torch.from_numpy(np.random.Generator(np.random.Philox(5)).random((heads, *square)) < 0.5) | torch.eye(tokens).bool()
    bias, angle = small.normal(6, depth, heads, *square), small.normal(7, depth, heads, tokens, width // heads // 2)
    encoding = Encoding(
        rotary=[(each.cos()[None], each.sin()[None]) for each in angle],
        mask=[seen, seen, "causal", seen[0], None],
        bias=[None, bias[1], bias[2], bias[3], bias[4, :1]],
        logit_scale=0.8,
    )
    image, time, label = small.normal(4, 2, 4, *(patch * n for n in grid_hw)), torch.tensor([3.0, 777]), torch.tensor([10, 4])
    with torch.no_grad():
        ours = model(image, time, label, encoding)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(image, time, label, encoding).float()
    added = bias.clone()
    added[0], added[4] = 0, bias[4, :1]
    masks = np.ones((depth, heads, *square))
    masks[0] = masks[1] = seen.numpy()
    masks[2] = np.tril(np.ones(square))
    masks[3] = seen[0].numpy()
    for i in range(2):
        exact = by_definition(model.state_dict(), image[i].numpy(), time[i].item(), label[i].item(), grid_hw, heads, patch, 8,
                              0, angle.double().numpy(), masks, added.double().numpy(), 0.8, np.zeros(width))  # fmt: skip
        np.testing.assert_allclose(ours[i].numpy(), exact, rtol=1e-4, atol=1e-4 * exact.std())
        assert np.square(rounded[i].numpy() - exact).mean() < (0.03 * exact.std()) ** 2


def test_stem_sees_the_grid():
    model, seen = core(), []

    def stem(x, factor=1):
        seen.append(x)
        return factor * x

    image = small.normal(1, 1, 4, 6, 10)
    small.fill(model)
    plain, told = (model(image, torch.zeros(1), torch.zeros(1, dtype=torch.long), encoding, stem)
                   for encoding in (Encoding(), Encoding(stem={"factor": 2})))  # fmt: skip
    assert not torch.equal(plain, told), "what the encoding says at a step reaches the stem"
    assert seen[0].shape == (1, 32, 3, 5)
    torch.testing.assert_close(seen[0], torch.nn.functional.conv2d(image, *model.x_embedder.proj.parameters(), stride=2))


def test_starts_as_published():
    torch.manual_seed(0)
    model = core(width=64, depth=2)
    assert all(block.adaLN_modulation[1].weight.eq(0).all() for block in [*model.blocks, model.final_layer])
    assert model.final_layer.linear.weight.eq(0).all()
    assert all(abs(model.t_embedder.mlp[layer].weight.std() - 0.02) < 0.001 for layer in (0, 2))
    assert abs(model.y_embedder.embedding_table.weight.std() - 0.02) < 0.003
    bound = math.sqrt(6 / (64 + 192))  # xavier
    assert 0.98 * bound < model.blocks[0].attn.qkv.weight.abs().max() <= bound
    patch = model.x_embedder.proj.weight
    assert 0.9 * math.sqrt(6 / (64 + 16)) < patch.abs().max() <= math.sqrt(6 / (64 + 16))
    output = model(small.normal(1, 1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long), Encoding())
    assert output.eq(0).all()


def test_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="width 30 is not divisible by 4 heads"):
        core(width=30, heads=4)
    with pytest.raises(ValueError, match="7 x 8 does not divide into patches of 2"):
        core()(torch.zeros(1, 4, 7, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long), Encoding())


def test_the_residual_stream_is_float32_under_autocast():
    model, seen = small.fill(core()), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(small.normal(1, 1, 4, 6, 10), torch.zeros(1), torch.zeros(1, dtype=torch.long), Encoding())
    assert seen == [torch.float32] * len(model.blocks)


def test_noise_levels_are_embedded_in_float32_under_autocast():
    """Of 250 levels from 0 to 1 two neighbours have half of their sinusoids in common once these have eight bits."""
    embedder = small.fill(core()).t_embedder
    time = torch.arange(250) / 250
    with torch.autocast("cpu", torch.bfloat16):
        found = embedder(time)
    torch.testing.assert_close(found, embedder(time), rtol=0, atol=0)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_attention_in_bfloat16_is_the_fused_kernels_function(tokens, gradients):
    q, k, v = small.normal(1, 3, 2, 3, tokens, 16)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    with torch.set_grad_enabled(gradients):
        heads = torch.stack([mask, mask.T, torch.ones_like(mask)])
        bias = small.normal(2, 3, tokens, tokens)
        cases = [(None, None, None), ("causal", None, None), (mask, None, 0.7), (mask, None, None), (heads, None, None)]
        for seen, added, scale in [*cases, (None, bias, 0.7), ("causal", bias, None), (heads, bias, None)]:
            exact = attend(q, k, v, seen, added, scale)
            rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), seen, added, scale)
            assert rounded.dtype == torch.bfloat16
            assert (rounded.float() - exact).abs().max() < (0.05 if added is None else 0.1)
    causal, masked = (attend(q, k, v, seen, None, None) for seen in ("causal", mask))
    torch.testing.assert_close(causal, masked, rtol=1e-5, atol=1e-6)


def test_gelu_is_one_function():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 300, -300])])
    exact = torch.nn.functional.gelu(x.bfloat16().double(), approximate="tanh")
    with torch.no_grad():
        error = (gelu(x.bfloat16()).double() - exact).abs()
    assert (error <= 0.02 * exact.abs() + 0.01).all()
    assert torch.equal(gelu(x), torch.nn.functional.gelu(x, approximate="tanh"))


def test_sinusoids_at_both_ends():
    table = sinusoids(torch.tensor([0.0, 1000.0]), 256)
    assert table.shape == (2, 256)
    assert table[0].tolist() == [1.0] * 128 + [0.0] * 128
    last = math.exp(-math.log(10000) * 127 / 128)
    expected = [math.cos(1000), math.cos(1000 * last), math.sin(1000), math.sin(1000 * last)]
    torch.testing.assert_close(table[1, [0, 127, 128, 255]], torch.tensor(expected), rtol=0, atol=1e-4)
