"""Weights in the DiT layout: in, out, and refused."""

from __future__ import annotations

import argparse
import os

import pytest
import safetensors.torch
import small
import torch

from benchmark import registry
from benchmark.files import UserError
from benchmark.model import checkpoint
from benchmark.model.dit import Core
from benchmark.model.encoding import Encoding, sincos_table, token_yx


def build(name="sincos", **sections):
    sections = {"objective": {"name": "ddpm"}, "core": {"channels": 4, "patch": 2}} | sections
    return registry.load(name)(small.protocol({"16x16": ["16x16"]}, **sections), "16x16")


def published(seed: int = 3) -> dict[str, torch.Tensor]:
    """A file as published, its names and shapes written out: depth 2, width 32, patch 2, 8 x 8 tokens, 4 classes."""
    shapes = {"pos_embed": (1, 64, 32), "x_embedder.proj.weight": (32, 4, 2, 2), "x_embedder.proj.bias": (32,),
              "t_embedder.mlp.0.weight": (32, 256), "t_embedder.mlp.0.bias": (32,), "t_embedder.mlp.2.weight": (32, 32),
              "t_embedder.mlp.2.bias": (32,), "y_embedder.embedding_table.weight": (5, 32)}  # fmt: skip
    for i in range(2):
        for name, rows, columns in (("attn.qkv", 96, 32), ("attn.proj", 32, 32), ("mlp.fc1", 128, 32), ("mlp.fc2", 32, 128),
                                    ("adaLN_modulation.1", 192, 32)):  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
    shapes |= {"final_layer.linear.weight": (32, 32), "final_layer.linear.bias": (32,),
               "final_layer.adaLN_modulation.1.weight": (64, 32), "final_layer.adaLN_modulation.1.bias": (64,)}  # fmt: skip
    state = {name: small.normal(seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return state | {"pos_embed": sincos_table(*token_yx((8, 8)), 32)[None]}


def test_xl2_has_the_published_tensors():
    """292 tensors and 675,129,632 values, of which the frozen table is one tensor of 256 x 1152."""
    size = checkpoint.SIZES["XL"]
    with torch.device("meta"):
        core = Core(**size._asdict(), patch=2, channels=4, out_channels=8, classes=1000)
    tensors = core.state_dict()
    assert len(tensors) + 1 == 292
    assert sum(value.numel() for value in tensors.values()) + 256 * 1152 == 675_129_632
    assert tensors["blocks.27.adaLN_modulation.1.weight"].shape == (6912, 1152)
    assert tensors["final_layer.linear.weight"].shape == (32, 1152)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_sizes_have_the_published_numbers_of_weights(size, millions, patch):
    with torch.device("meta"):
        core = Core(**checkpoint.SIZES[size]._asdict(), patch=patch, channels=4, out_channels=8, classes=1000)
    assert sum(p.numel() for p in core.parameters()) == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("form", ["bare", "ema", "args", "model", "safetensors", "half"])
def test_import(form, tmp_path):
    state, path = published(), tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "half":
        torch.save({name: value.bfloat16() for name, value in state.items()}, path)
    else:
        other = {name: value + 1 for name, value in state.items()}
        contents = {
            "bare": state,
            "model": {"model": state},
            "ema": {"model": other, "ema": state, "opt": {"state": {}}},
            "args": {"model": other, "ema": state, "args": argparse.Namespace(lr=1e-4, model="DiT-XL/2")},
        }
        torch.save(contents[form], path)
    method = build()
    checkpoint.initialise(method, path)
    for name, value in method.core.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, state[name], rtol=0.01 if form == "half" else 0, atol=0)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_export_gives_back_what_came_in(ending, tmp_path):
    torch.save(published(), tmp_path / "in.pt")
    method = build()
    checkpoint.initialise(method, tmp_path / "in.pt")
    path = tmp_path / f"out.{ending}"
    checkpoint.export(method, path)
    state = safetensors.torch.load_file(path) if ending == "safetensors" else torch.load(path, weights_only=True)
    assert state.keys() == published().keys()
    assert all(torch.equal(state[name], value) for name, value in published().items())
    other = build()
    checkpoint.initialise(other, path)
    x, time, label = small.normal(1, 1, 4, 6, 10), torch.tensor([300.0]), torch.tensor([2])
    with torch.no_grad():
        assert torch.equal(method.core(x, time, label, Encoding()), other.core(x, time, label, Encoding()))


def test_export_of_other_methods(tmp_path):
    checkpoint.export(build("yarn"), tmp_path / "yarn.pt")
    assert torch.load(tmp_path / "yarn.pt", weights_only=True)["pos_embed"].eq(0).all()
    learned = build("learned")
    checkpoint.export(learned, tmp_path / "learned.pt")
    table = torch.load(tmp_path / "learned.pt", weights_only=True)["pos_embed"]
    assert torch.equal(table[0], learned.table[0].flatten(1).T)
    with pytest.raises(
        UserError, match=r"LEDiT has weights that do not exist in the DiT layout: stem\.conv\.weight, stem\.conv\.bias"
    ):
        checkpoint.export(build("ledit"), tmp_path / "ledit.pt")
    assert not (tmp_path / "ledit.pt").exists()


def test_wrong_keys_are_named(tmp_path):
    state = published()
    del state["blocks.1.mlp.fc2.bias"], state["t_embedder.mlp.0.weight"]
    state |= {"blocks.2.attn.proj.bias": torch.zeros(32), "y_embedder.embedding_table.weight": torch.zeros(1001, 32)}
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].T.contiguous()  # as many values, another shape
    torch.save(state, tmp_path / "weights.pt")
    method = build()
    before = {name: value.clone() for name, value in method.core.state_dict().items()}
    with pytest.raises(UserError) as error:
        checkpoint.initialise(method, tmp_path / "weights.pt")
    text = str(error.value)
    assert "missing: t_embedder.mlp.0.weight, blocks.1.mlp.fc2.bias;" in text
    assert "not of this core: blocks.2.attn.proj.bias;" in text
    assert "of another shape: y_embedder.embedding_table.weight (1001, 32) instead of (5, 32)" in text
    assert "blocks.0.mlp.fc1.weight (32, 128) instead of (128, 32)" in text
    assert "\n" not in text
    assert all(torch.equal(value, before[name]) for name, value in method.core.state_dict().items())


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": published(), "args": Trap()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds code or objects, not only tensors, and is refused"):
        checkpoint.load_core(tmp_path / "weights.pt")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(ending, share, tmp_path):
    whole, path = tmp_path / f"whole.{ending}", tmp_path / f"weights.{ending}"
    checkpoint.export(build(), whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is not a complete"):
        checkpoint.load_core(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*train\.init=PATH"):
        checkpoint.load_core(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no weights at all")
    with pytest.raises(UserError, match=r"is not a complete PyTorch file|is refused"):
        checkpoint.load_core(tmp_path / "text.pt")
    for content in (torch.zeros(3), {}, {"model": 3}, {"a": "b"}, [torch.zeros(1)]):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match="neither a state dict"):
            checkpoint.load_core(tmp_path / "other.pt")


def test_the_weights_of_a_training_of_ours_start_another_one(tmp_path, capsys):
    """Their keys begin with `core.`; what a method adds to the core stays behind."""
    giver, taker = build(), build()
    with torch.no_grad():
        for parameter in giver.core.parameters():
            parameter.add_(1.0)
    state = {name: value.contiguous() for name, value in giver.state_dict().items()} | {"extra.table": torch.zeros(3)}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    checkpoint.initialise(taker, tmp_path / "weights.safetensors")
    for name, value in giver.core.state_dict().items():
        assert torch.equal(taker.core.state_dict()[name], value), name
    heard = capsys.readouterr()
    assert "which its method adds to the core" in heard.out + heard.err


def test_a_message_about_keys_names_at_most_five(tmp_path):
    state = {f"strange.{number}": torch.zeros(1) for number in range(1000)}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as caught:
        checkpoint.initialise(build(), tmp_path / "x.safetensors")
    assert "and 995 more" in str(caught.value)
    assert len(str(caught.value)) < 800


# --- SiT and SiT-REPA ------------------------------------------------------------------------------------------------


def published_flow(kind: str) -> dict[str, torch.Tensor]:
    """As `published`, with SiT's eight outputs (patch 2), or REPA's four and its projectors; gates and table small."""
    state = {name: value if name == "pos_embed" else 0.2 * value for name, value in published(7).items()}
    if kind != "sit":
        state |= {"final_layer.linear.weight": 0.2 * small.normal(90, 16, 32), "final_layer.linear.bias": small.normal(91, 16)}
        state |= {"projectors.0.0.weight": small.normal(92, 48, 32), "projectors.0.0.bias": small.normal(93, 48)}
    if kind == "legacy":  # REPA's older files name the blocks behind the projectors apart
        state = {name.replace("blocks.1.", "decoder_blocks.0."): value for name, value in state.items()}
    return state


def independent(state: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The published network in plain tensor algebra, from its description: float64, 2 heads, patch 2, t on 0 .. 1."""
    w = {name: value.double() for name, value in state.items()}

    def linear(value, name):
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(value):
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def silu(value):
        return value / (1 + (-value).exp())

    def gelu(value):
        return 0.5 * value * (1 + ((2 / torch.pi) ** 0.5 * (value + 0.044715 * value**3)).tanh())

    count, _, height, width = x.shape
    h, v = height // 2, width // 2
    patches = x.double().reshape(count, 4, h, 2, v, 2).permute(0, 2, 4, 1, 3, 5).reshape(count, h * v, 16)
    tokens = patches @ w["x_embedder.proj.weight"].reshape(32, 16).T + w["x_embedder.proj.bias"] + w["pos_embed"]
    angles = t.double()[:, None] * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    wave = torch.cat([angles.cos(), angles.sin()], 1)
    c = linear(silu(linear(wave, "t_embedder.mlp.0")), "t_embedder.mlp.2") + w["y_embedder.embedding_table.weight"][label]
    for i in range(2):
        parts = linear(silu(c), f"blocks.{i}.adaLN_modulation.1")[:, None].split(32, -1)
        q, k, value = linear(norm(tokens) * (1 + parts[1]) + parts[0], f"blocks.{i}.attn.qkv").split(32, -1)
        heads = []
        for head in (slice(0, 16), slice(16, 32)):
            weights = (q[..., head] @ k[..., head].transpose(1, 2) / 4).softmax(-1)
            heads.append(weights @ value[..., head])
        tokens = tokens + parts[2] * linear(torch.cat(heads, -1), f"blocks.{i}.attn.proj")
        hidden = gelu(linear(norm(tokens) * (1 + parts[4]) + parts[3], f"blocks.{i}.mlp.fc1"))
        tokens = tokens + parts[5] * linear(hidden, f"blocks.{i}.mlp.fc2")
    shift, scale = linear(silu(c), "final_layer.adaLN_modulation.1")[:, None].split(32, -1)
    out = linear(norm(tokens) * (1 + scale) + shift, "final_layer.linear")
    out = out.reshape(count, h, v, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(count, -1, height, width)
    return out[:, :4]


@pytest.mark.parametrize("kind", ["sit", "repa", "legacy"])
def test_flow_models_of_others(kind, tmp_path, capsys):
    """One Euler step from noise is the published one, told in its own time: SiT's t = 0 is noise, REPA's is data."""
    state = published_flow(kind)
    torch.save({"ema": state, "model": {}, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "weights.pt")
    objective = {"name": "flow", "convention": "sit" if kind == "sit" else "repa"}
    method = build(objective=objective, sample={"steps": 1, "guidance": 1.0})
    checkpoint.initialise(method, tmp_path / "weights.pt")
    heard = capsys.readouterr()
    said = heard.out + heard.err
    assert ("projectors.0.0.weight" in said) == (kind != "sit")
    x, label = small.normal(5, 2, 4, 16, 16), torch.tensor([1, 3])
    whole = {name.replace("decoder_blocks.0.", "blocks.1."): value for name, value in state.items()}
    for level in (1.0, 0.7, 0.05):
        with torch.no_grad():
            ours = method.predict(x, torch.full((2,), 1000 * level), label, method.encoding((8, 8)), None)
        t = torch.full((2,), 1 - level if kind == "sit" else level)
        theirs = independent(whole, x, t, label)
        torch.testing.assert_close(ours.double(), -theirs if kind == "sit" else theirs, rtol=2e-4, atol=2e-4)
    checkpoint.export(method, tmp_path / "again.safetensors")
    again = build(objective=objective)
    checkpoint.initialise(again, tmp_path / "again.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(method.core.state_dict().values(), again.core.state_dict().values(), strict=True)
    )


def test_the_usual_convention_refuses_flow_models_of_others(tmp_path):
    torch.save(published_flow("sit"), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"of another shape: final_layer\.linear\.weight"):
        checkpoint.initialise(build(objective={"name": "flow"}), tmp_path / "weights.pt")
