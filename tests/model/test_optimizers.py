"""Muon and AdamW as one optimizer, against the polar factor by singular values and against torch's own AdamW."""

from __future__ import annotations

import copy
import pickle

import pytest
import small
import torch

from benchmark import protocol, registry
from benchmark.files import UserError
from benchmark.identity import Training
from benchmark.model.optimizers import MuonAdamW


def build(**train):
    rules = small.protocol(train={"optimizer": "muon", "lr": 1e-3, "warmup": 4, "decay": 8} | train)
    return small.fill(registry.build("extrapolation", rules, "16x24", 0))


def steps(method, setup, first: int, last: int) -> None:
    for step in range(first, last):
        setup["optimizer"].zero_grad()
        small.loss(method, step).backward()
        method.configure_gradient_clipping(setup["optimizer"])
        setup["optimizer"].step()
        setup["lr_scheduler"]["scheduler"].step()


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_the_first_step_of_a_matrix_is_near_its_gradients_polar_factor(shape: tuple[int, int]) -> None:
    """U f(S) V' with the gradient's own singular vectors, every f(s) in about [0.7, 1.2], times lr sqrt(max(1, A / B))."""
    matrix = torch.nn.Parameter(small.normal(0, *shape))
    before, gradient = matrix.detach().clone(), small.normal(1, *shape)
    optimizer = MuonAdamW([matrix], [torch.nn.Parameter(torch.zeros(1))], lr=1.0, muon_lr=0.1, betas=(0.9, 0.99))
    matrix.grad = gradient.clone()
    optimizer.step()
    moved = (before - matrix.detach()) / (0.1 * max(1, shape[0] / shape[1]) ** 0.5)
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    inside = u.T @ moved @ v.T
    torch.testing.assert_close(u @ inside @ v, moved, atol=0.03, rtol=0)
    factors = inside.diagonal()
    assert ((factors > 0.6) & (factors < 1.25)).all()
    assert (inside - factors.diag()).abs().max() < 0.05


def test_other_parameters_move_as_with_adamw_alone() -> None:
    one, other = (torch.nn.Parameter(small.normal(2, 7)) for _ in range(2))
    both = MuonAdamW(
        [torch.nn.Parameter(small.normal(3, 4, 4))], [one], lr=0.01, muon_lr=0.1, betas=(0.9, 0.99), weight_decay=0.1
    )
    alone = torch.optim.AdamW([other], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(3):
        one.grad, other.grad = small.normal(10 + step, 7), small.normal(10 + step, 7)
        both.step()
        alone.step()
    assert torch.equal(one, other)


def test_muon_takes_the_matrices_of_attention_and_mlp() -> None:
    method = build()
    matrices, others = (group["params"] for group in method.optimizer().param_groups)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    expected = {f"core.blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {names[id(parameter)] for parameter in matrices} == expected
    assert len(matrices) + len(others) == len(names)


def test_a_restored_state_continues_with_the_same_bits() -> None:
    through = build()
    setup = through.configure_optimizers()
    steps(through, setup, 0, 3)
    weights = copy.deepcopy(through.state_dict())
    state = copy.deepcopy(
        {"optimizer": setup["optimizer"].state_dict(), "schedule": setup["lr_scheduler"]["scheduler"].state_dict()}
    )
    steps(through, setup, 3, 6)
    resumed = build()
    again = resumed.configure_optimizers()
    resumed.load_state_dict(weights)
    again["optimizer"].load_state_dict(state["optimizer"])
    again["lr_scheduler"]["scheduler"].load_state_dict(state["schedule"])
    steps(resumed, again, 3, 6)
    for name, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_steps_as_the_original_does(again) -> None:
    """With its parameters in the copy, whose groups a schedule reaches in both parts."""
    pair = [torch.nn.Parameter(small.normal(0, 6, 4)), torch.nn.Parameter(small.normal(1, 5))]
    optimizer = MuonAdamW(pair[:1], pair[1:], lr=0.01, muon_lr=0.1, betas=(0.9, 0.99))

    def step(parameters, by, seed: int) -> None:
        for parameter in parameters:
            parameter.grad = small.normal(seed, *parameter.shape)
        for group in by.param_groups:
            group["lr"] *= 0.5
        by.step()

    step(pair, optimizer, 2)
    other, copied = again([optimizer, pair])
    before = [parameter.detach().clone() for parameter in copied]
    step(pair, optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, copied, strict=True))
    step(copied, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(pair, copied, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, copied, strict=True))


def test_the_schedule_reaches_both_parts() -> None:
    """With a decay that has ended, nothing moves."""
    method = build(decay=20, warmup=0)
    setup = method.configure_optimizers()
    for _ in range(20):
        setup["lr_scheduler"]["scheduler"].step()
    before = copy.deepcopy(method.state_dict())
    assert [group["lr"] for group in setup["optimizer"].param_groups] == [0, 0]
    small.loss(method).backward()
    setup["optimizer"].step()
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_trained_method_may_have_a_rate_of_its_own() -> None:
    rules = protocol.load("smoke", ["train.lr=3e-3", "train.lr_of.ledit=1e-3"])
    rates = [registry.build(name, rules, "16x16", 0).learning_rate for name in ("ledit", "ledit_causal", "sincos")]
    assert rates == [1e-3, 3e-3, 3e-3]
    with pytest.raises(UserError, match=r"train\.lr_of\.ledit must be above 0"):
        protocol.load("smoke", ["train.lr_of.ledit=0"])
    with pytest.raises(UserError, match=r"train\.optimizer"):
        protocol.load("smoke", ["train.optimizer=moun"])


def test_both_rates_follow_the_methods() -> None:
    """A method whose rate is half of the others' has half of Muon's as well."""
    rules = small.protocol(train={"optimizer": "muon", "lr": 1e-3, "muon_lr": 0.02, "lr_of": {"ledit": 5e-4}})
    rates = {
        name: [group["lr"] for group in registry.build(name, rules, "16x24", 0).optimizer().param_groups]
        for name in ("ledit", "sincos")
    }
    assert rates == {"ledit": [0.01, 5e-4], "sincos": [0.02, 1e-3]}


def test_trainings_whose_rates_differ_have_different_keys() -> None:
    """Muon's rate depends on the shared rate as well, which says nothing of AdamW's."""

    def keys(method: str, *rates: dict) -> set[str]:
        found = [small.protocol(train={"muon_lr": 0.02} | rate) for rate in rates]
        return {Training(rules, method, next(iter(rules.cells)), 0).key("data") for rules in found}

    own, shared = {"lr": 1e-4, "lr_of": {"ledit": 1e-3}}, {"lr": 1e-3}
    muon = {"optimizer": "muon"}
    assert len(keys("ledit", muon | own, muon | shared)) == 2
    assert len(keys("sincos", muon | {"lr": 1e-3, "lr_of": {"ledit": 1e-4}}, muon | shared)) == 1
    assert len(keys("ledit", {"muon_lr": 0.02} | own, shared)) == 1, "AdamW has its own rate alone"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_betas_and_weight_decay_are_the_protocols(optimizer: str) -> None:
    """Those of torch's AdamW are others."""
    rules = small.protocol(train={"optimizer": optimizer, "betas": [0.8, 0.95], "weight_decay": 0.03})
    groups = registry.build("nope", rules, "16x24", 0).optimizer().param_groups
    assert {group["weight_decay"] for group in groups} == {0.03}
    assert [tuple(group["betas"]) for group in groups if "betas" in group] == [(0.8, 0.95)]
    plain = registry.build("nope", small.protocol(train={"optimizer": optimizer}), "16x24", 0).optimizer().param_groups
    assert {group["weight_decay"] for group in plain} == {0}
