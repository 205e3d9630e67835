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
    return registry.load(name)(small.contest({"16x16": ["16x16"]}, **sections), "16x16")


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
    with pytest.raises(UserError, match=r"LEDiT has weights .* no place for: stem\.conv\.weight, stem\.conv\.bias"):
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
    with pytest.raises(UserError, match="is not a whole"):
        checkpoint.load_core(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not there.*train\.init=PATH"):
        checkpoint.load_core(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no weights at all")
    with pytest.raises(UserError, match=r"is not a whole PyTorch file|is refused"):
        checkpoint.load_core(tmp_path / "text.pt")
    for content in (torch.zeros(3), {}, {"model": 3}, {"a": "b"}, [torch.zeros(1)]):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match="neither a state dict"):
            checkpoint.load_core(tmp_path / "other.pt")


def test_the_weights_of_a_training_of_ours_start_another_one(tmp_path):
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


def test_a_message_about_keys_names_at_most_five(tmp_path):
    state = {f"strange.{number}": torch.zeros(1) for number in range(1000)}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as caught:
        checkpoint.initialise(build(), tmp_path / "x.safetensors")
    assert "and 995 more" in str(caught.value)
    assert len(str(caught.value)) < 800
