"""The large protocols: what they fix, and how a checkpoint to start from is known."""

from __future__ import annotations

import re

import pytest
import yaml

from benchmark import protocol, registry
from benchmark.board.beside import PARTS
from benchmark.files import UserError
from benchmark.identity import methods_of
from benchmark.run.sample import check_settings

IMAGENET = [name for name in protocol.names() if re.fullmatch(r"imagenet-(256|512)-(s2|b2|xl2)(-ft|-10k)?", name)]


def test_the_large_protocols_are_there():
    wanted = ["256-xl2", "512-xl2", "256-xl2-ft", "512-xl2-ft", "256-b2", "256-s2", "256-s2-10k"]
    assert {f"imagenet-{name}" for name in wanted} <= set(IMAGENET)


@pytest.mark.parametrize("name", IMAGENET)
def test_large_protocols_are_the_papers(name):
    found = protocol.load(name)
    ((train, tests),) = found.cells.items()
    wanted = {
        "256x256": ["128x128", "256x256", "320x320", "384x384", "448x448", "512x512", "512x384", "384x512"],
        "512x512": ["256x256", "512x512", "768x768", "896x896", "1024x1024"],
    }
    assert tests == wanted[train]
    assert train.split("x")[0] in name
    core, sample = found.core, found.sample
    sizes = {"s2": (384, 12, 6), "b2": (768, 12, 12), "xl2": (1152, 28, 16)}
    assert (core.width, core.depth, core.heads) == sizes[name.split("-")[2]]
    assert (core.patch, core.channels, core.classes, core.mlp_ratio) == (2, 4, 1000, 4.0)
    assert (found.data.card, found.data.representation, found.data.factor) == ("imagenet", "latents", 8)
    assert found.objective == protocol.Objective(name="ddpm")
    assert (sample.solver, sample.steps, sample.guidance, sample.guidance_channels) == ("ddpm", 250, 1.5, "three")
    assert (found.train.batch, found.train.lr, found.train.ema, found.train.weight_decay) == (256, 1e-4, 0.9999, 0.0)
    assert (sample.labels, found.train.warmup, found.train.decay, found.train.clip) == ("balanced", 0, 0, 0)
    assert list(found.train.betas) == [0.9, 0.999]
    assert found.switches == protocol.Switches(attention_scale="jin")
    nearest = 1_000 if train == "512x512" else 10_000
    assert (found.score.detector, found.score.reference, found.score.nearest, found.score.splits) == (
        "inception",
        50_000,
        nearest,
        0,
    )
    tuned = name.endswith("-ft")
    assert found.train.steps == (100_000 if tuned else 400_000)
    assert bool(found.train.init) == tuned
    if tuned:  # the rows that show what LEDiT's parts bring follow its recipe
        assert found.options == {name: {"recipe": "finetune"} for name in ("ledit", "ledit_causal", "ledit_convolution")}
        assert methods_of(found) == [name for name in registry.names() if name != "ledit_finetune"]
    else:
        assert found.options == {"ledit": {"recipe": "scratch"}}
    assert sample.count == (10_000 if name.endswith("10k") or train == "512x512" else 50_000)
    for method, options in found.options.items():
        registry.load(method).make_options(options)


def test_sit_is_fine_tuned_as_dit_is_but_for_what_a_flow_needs():
    sit, dit = (protocol.load(f"imagenet-256-{name}-ft").rules() for name in ("sit", "xl2"))
    assert sit["switches"] == {"attention_scale": "none", "timestep_shift": "none"} != dit["switches"]
    assert sit["objective"] == dit["objective"] | {"name": "flow", "time": "uniform", "convention": "sit"}
    assert sit["sample"] == dit["sample"] | {"solver": "euler"}
    for section in ("core", "data", "score", "cells", "options"):
        assert sit[section] == dit[section], section
    assert sit["train"] | {"init": ""} == dit["train"] | {"init": ""}


@pytest.mark.parametrize("name", protocol.names())
def test_a_methods_parts_have_its_recipe(name):
    """Otherwise rows of leaderboards/parts.yaml would differ in more than the part that they are named for."""
    rules = protocol.load(name)
    for whole, parts in yaml.safe_load(PARTS.read_text(encoding="utf-8")).items():
        made = {each: registry.load(each).make_options(rules.options.get(each, {})) for each in (whole, *parts)}
        recipes = {each: options.recipe for each, options in made.items() if hasattr(options, "recipe")}
        assert len(set(recipes.values())) <= 1, recipes


def test_no_method_is_listed_twice_under_two_names():
    """With the fine-tuning recipe, `ledit` is `ledit_finetune`."""
    rules = protocol.load("imagenet-256-sit-ft")
    assert rules.methods == protocol.load("imagenet-256-xl2-ft").methods
    made = registry.load("ledit").make_options(rules.options["ledit"])
    assert vars(made) == vars(registry.load("ledit_finetune").make_options({}))


def test_reduced_protocols_say_so_and_share_no_hash():
    assert "10,000" in protocol.load("imagenet-256-s2-10k").title
    hashes = [protocol.load(name).hash for name in IMAGENET]
    assert len(set(hashes)) == len(hashes)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    here, there = tmp_path / "here.pt", tmp_path / "there.pt"
    here.write_bytes(b"weights")
    there.write_bytes(b"weights")
    first = protocol.load("imagenet-256-xl2-ft", [f"train.init={here}"])
    second = protocol.load("imagenet-256-xl2-ft", [f"train.init={there}"])
    assert first.train.init == str(here)  # what the training opens
    assert first.hash == second.hash
    assert first.training("256x256") == second.training("256x256")
    assert str(tmp_path) not in str(first.rules())
    there.write_bytes(b"other weights")
    other = protocol.load("imagenet-256-xl2-ft", [f"train.init={there}"])
    assert other.hash != first.hash
    assert other.training("256x256") != first.training("256x256")


def test_a_pinned_checkpoint_belongs_to_the_protocol(tmp_path, monkeypatch):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    identity = protocol.identity(str(weights))
    text = (protocol.FOLDER / "imagenet-256-xl2-ft.yaml").read_text()
    (tmp_path / "pinned.yaml").write_text(text.replace("init: DiT-XL-2-256x256.pt", f'init: "{identity}"'))
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    found = protocol.load("pinned", [f"train.init={weights}"])
    assert not found.custom
    assert found.hash == protocol.load("pinned").hash
    assert protocol.load("pinned", [f"train.init={weights}", "train.steps=5"]).custom
    weights.write_bytes(b"another one")
    assert protocol.load("pinned", [f"train.init={weights}"]).custom


def test_a_file_that_merely_has_the_name_is_not_the_checkpoint(tmp_path, monkeypatch):
    """It lies in the working directory, say, where it was downloaded."""
    name = "imagenet-256-xl2-ft"
    wanted, asked = protocol.load(name).hash, protocol.load(name).train.init
    monkeypatch.chdir(tmp_path)
    (tmp_path / asked).write_bytes(b"anything")
    found = protocol.load(name)
    assert (found.hash, found.custom) == (wanted, False)
    with pytest.raises(UserError, match=rf"{name} starts from a checkpoint \({asked}\): give the file as train.init=PATH"):
        found.checkpoint()
    given = protocol.load(name, [f"train.init={asked}"])
    assert given.custom
    assert given.hash != wanted
    assert given.checkpoint() == asked
    assert protocol.load("shapes").checkpoint() == ""
    (tmp_path / "own.yaml").write_text(f"base: {name}\ntrain: {{steps: 5}}\n")  # which asks for what its base asks for
    with pytest.raises(UserError, match=r"give the file as train\.init=PATH"):
        protocol.load("own.yaml").checkpoint()
    (tmp_path / "own.yaml").write_text(f"base: {name}\ntrain: {{init: {asked}}}\n")
    assert protocol.load("own.yaml").checkpoint() == asked
    (tmp_path / asked).unlink()
    with pytest.raises(UserError, match=rf"train.init: {asked} does not exist"):
        protocol.load("own.yaml").checkpoint()


def test_a_checkpoint_that_was_not_given_is_told_before_any_work():
    for name in ("imagenet-256-xl2-ft", "imagenet-512-xl2-ft"):
        with pytest.raises(UserError, match=r"give the file as train\.init=PATH"):
            check_settings(protocol.load(name), ["extrapolation"])


def test_an_absent_checkpoint_is_named():
    with pytest.raises(UserError, match=r"train.init: no/such.pt does not exist"):
        protocol.load("imagenet-256-xl2-ft", ["train.init=no/such.pt"])
