"""Every option of every method changes what the core is told, how it is built or how it is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import small
import torch
from strategies import build

from benchmark import registry
from benchmark.run.sample import equal

DEFAULTS = {
    (name, field.name): field.default for name in registry.names() for field in dataclasses.fields(registry.load(name).Options)
}
# What an option is set to: switches are flipped, and numbers that are not here doubled.
OTHER = {
    "band": 2, "beta_1": 0.5, "beta_fast": 8.0, "beta_slow": 0.2, "conditioning": "pixels", "dilated": 1.0, "draw": "batch",
    "gamma_0": 4.0, "gamma_1": 1.0, "h_max": 1024, "l_max": 100_000, "resize": 1.2, "rule": "fitv2", "scan": "raster",
    "share": 0.3, "spacing": "random", "uncropped": 0.2, "view": 45, "watershed": 0.2,
}  # fmt: skip
SWAPPED = {"yarn": "ntk", "ntk": "yarn", "scratch": "finetune", "finetune": "scratch"}
# Options that count only together with another one.
FORM, WHOLE = {"form": "yarn"}, {"convolution": True}
UNDER: dict[tuple[str, str], dict[str, Any]] = {
    ("dype", "strength"): {"form": "ntk"},
    ("ledit", "dilated"): {"recipe": "finetune"},
    ("ledit_causal", "dilated"): {"recipe": "finetune"} | WHOLE,
    ("ledit_convolution", "dilated"): {"recipe": "finetune"},
    ("ledit_finetune", "norm"): {"recipe": "scratch"},
    ("rpe2d_positions", "conditioning"): {"micro_conditioning": True},
    ("rpe2d_positions", "uncropped"): {"resize": 1.5},
}
UNDER |= {("dype_ntk", option): FORM for option in ("temperature", "beta_0", "beta_1", "gamma_0", "gamma_1")}
UNDER |= {("ledit_causal", option): WHOLE for option in ("depthwise", "residual", "norm")}
UNDER |= {("ledit_convolution", option): {"causal": True} for option in ("scan", "layers")}


def other(name: str, option: str) -> Any:
    """Another value of an option than its default."""
    default = DEFAULTS[name, option]
    if option == "layers":
        return "single" if name == "ledit_finetune" else "alternating"
    if isinstance(default, bool):
        return not default
    return SWAPPED.get(default) or OTHER.get(option) if isinstance(default, str) else OTHER.get(option, 2 * default)


def seen(name: str, options: dict[str, Any]) -> list[Any]:
    """Augmentation, encodings on axes of many tokens, first weights and losses of two steps."""
    torch.manual_seed(0)
    tiny = build(name, core={"depth": 4}, options={name: {key: value for key, value in options.items() if key != "l_max"}})
    core = {"width": 64, "heads": 1, "depth": 4, "rope_base": 10_000.0, "patch": 1}
    long = build(name, "256x256", ("256x256", "1x512", "512x2"), core=core, options={name: options})
    encodings = [long.encoding(grid, time) for grid in ((1, 64), (1, 512), (512, 2)) for time in (0.3, 0.9)]
    weights = [value.clone() for value in tiny.state_dict().values()]
    tiny = small.fill(tiny).train()
    losses = [small.loss(tiny, step).detach() for step in range(2)]
    return [repr(tiny.augmentation), encodings, weights, losses]


@pytest.mark.parametrize(("name", "option"), DEFAULTS)
def test_every_option_changes_something(name: str, option: str) -> None:
    """Or a sweep over it would be the same run many times, under as many keys."""
    under, value = UNDER.get((name, option), {}), other(name, option)
    assert value is not None, "say in OTHER what to set it to"
    assert not equal(seen(name, under), seen(name, under | {option: value}))


@pytest.mark.parametrize("name", registry.names())
def test_the_same_options_are_the_same_method(name: str) -> None:
    assert equal(seen(name, {}), seen(name, {}))
