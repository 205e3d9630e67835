"""What is wrong with a method is told before hours are spent on it, in one line that names its file."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import pytest
import small
import torch

from benchmark import protocol, registry
from benchmark.__main__ import main
from benchmark.files import UserError
from benchmark.model.encoding import Encoding
from benchmark.model.method import Method
from benchmark.plan.place import Run
from benchmark.run import estimate, local, reproduce, sample, slurm
from methods.extrapolation import Extrapolation

SMOKE = protocol.load("smoke")  # trains at 16x16, 4 x 4 tokens; two heads of 16 channels, two blocks
LONG = protocol.load("smoke", ["core.width=64", "core.heads=2", "core.depth=2"])


def tried(monkeypatch, cls: type[Method], rules=LONG) -> None:
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda name: cls if name == "oops" else load(name))
    sample.try_out(rules, "oops", 0)


def returning(make) -> type[Method]:
    """A method whose encoding of T tokens is what `make` returns."""

    class Oops(Method):
        title = "Oops"

        def encode(self, grid_hw, *, time=None, draws=None):
            return make(grid_hw[0] * grid_hw[1])

    return Oops


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda t: None, "encode must return an Encoding, not NoneType"),
        (lambda t: Encoding(add=torch.zeros(64)), "add must be float [T, D] = [16, 64] or [B, T, D], not torch.float32 [64]"),
        (lambda t: Encoding(rotary=(torch.ones(2, t, 16),) * 2), "a table of rotary must be float [T, K/2] = [16, 16]"),
        (lambda t: Encoding(rotary=torch.ones(t, 16)), "rotary must be a pair (cos, sin), not Tensor"),
        (lambda t: Encoding(rotary=[(torch.ones(t, 16),) * 2]), "rotary must hold a pair for each of 2 blocks, not 1"),
        (lambda t: Encoding(bias=[torch.zeros(t, t)] * 2), "bias[0] must be None, or float [H, T, T] = [2, 16, 16] or [1, T, T]"),
        (lambda t: Encoding(bias=[None]), "bias must be a sequence with an entry for each of 2 blocks, not 1"),
        (lambda t: Encoding(bias=torch.zeros(2, t, t)), "bias must be a sequence with an entry for each of 2 blocks, not Tensor"),
        (lambda t: Encoding(mask=[torch.zeros(t, t)] * 2), 'mask[0] must be None, "causal", or bool [T, T] = [16, 16]'),
        (lambda t: Encoding(mask=[torch.zeros(t, t).bool()] * 2), "mask[0] has a query that sees no key"),
        (lambda t: Encoding(logit_scale=0.0), "logit_scale must be a positive number"),
        (lambda t: Encoding(add=torch.full((t, 64), torch.nan if t > 16 else 0.0)), "contains NaN or infinity (add)"),
    ],
)
def test_an_encoding_that_would_fail_or_be_broadcast_is_refused(make, told, monkeypatch):
    with pytest.raises(UserError) as error:
        tried(monkeypatch, returning(make))
    assert told in str(error.value)
    assert str(error.value).startswith("methods/test_try_out.py")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", registry.names())
def test_every_method_can_be_tried_out(name):
    sample.try_out(SMOKE, name, 0)


def test_a_title_is_a_methods_own(monkeypatch):
    class Inherits(Extrapolation):
        trains_as = "extrapolation"

    class Copied(Extrapolation):
        title, trains_as = "YaRN", "extrapolation"

    load, cls = registry.load, Inherits
    monkeypatch.setattr(registry, "load", lambda name: cls if name == "ntk" else load(name))
    with pytest.raises(UserError, match=r"methods/ntk\.py: give the class a title of its own"):
        sample.check_settings(SMOKE, ["ntk", "yarn"])
    cls = Copied
    with pytest.raises(UserError, match=r"methods/ntk\.py: the title 'YaRN' is that of methods/yarn\.py"):
        sample.check_settings(SMOKE, ["yarn", "ntk"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"title": "T" * 98}, "title must be a text of at most 80 characters"),
        ({"note": "n" * 301}, "note must be a text of at most 300 characters"),
        ({"note": "two\nlines"}, "note must be"),
    ],
)
def test_what_no_record_could_hold_is_told_before_the_work(changed, told, monkeypatch):
    cls, load = type("Oops", (Extrapolation,), {"title": "Oops", "trains_as": "extrapolation"} | changed), registry.load
    monkeypatch.setattr(registry, "load", lambda name: cls if name == "ntk" else load(name))
    with pytest.raises(UserError, match=f"^methods/ntk.py: {told}"):
        sample.check_settings(SMOKE, ["ntk"])


def test_a_name_that_no_record_could_hold_is_told_before_the_work(monkeypatch):
    load, trained = registry.load, registry.trained_name
    monkeypatch.setattr(registry, "load", lambda name: load("ntk" if name == "HalfSpeed" else name))
    monkeypatch.setattr(registry, "trained_name", lambda name: "extrapolation" if name == "HalfSpeed" else trained(name))
    with pytest.raises(UserError, match=r"methods/HalfSpeed.py: name must be a name of \[a-z0-9_\]\+, not 'HalfSpeed'"):
        sample.check_settings(SMOKE, ["HalfSpeed"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("options.ledit.dilated=0.2", "ledit is not among the methods of this run (rpe2d, yarn)"),
        ("train.lr_of.ledit=1e-3", "ledit is not trained in this run (extrapolation, rpe2d)"),
    ],
)
def test_a_setting_of_a_method_that_does_not_run_is_refused(override, told):
    with pytest.raises(UserError) as error:
        sample.check_settings(protocol.load("smoke", [override]), ["rpe2d", "yarn"])
    assert told in str(error.value)
    sample.check_settings(protocol.load("smoke", ["train.lr_of.extrapolation=1e-3"]), ["rpe2d", "yarn"])


@pytest.mark.parametrize("verb", [["loss", "yarn"], ["weights", "yarn", "yarn.pt"]])
def test_verbs_for_one_method_refuse_the_settings_of_others(verb, tmp_path, monkeypatch, capsys):
    words = [*verb, "options.rpe2d.resize=2", "--protocol", "smoke", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["posbench", *words])
    assert main() == 2
    assert "options.rpe2d.resize=2: rpe2d is not among the methods of this run (yarn" in capsys.readouterr().err


def test_of_several_methods_the_faulty_ones_are_left_out(monkeypatch, tmp_path):
    def try_out(rules, name, seed):
        if name in broken:
            raise TypeError("a fault of this method")

    ran = []
    monkeypatch.setattr(sample, "try_out", try_out)
    monkeypatch.setattr(estimate, "announce", lambda *_: None)
    monkeypatch.setattr(local, "run_in_parallel", lambda *_: None)
    monkeypatch.setattr(local, "run_one", ran.append)
    broken = {"yarn"}
    ((failed, reason),) = local.bench(SMOKE, ["yarn", "ntk"], 0, Run(tmp_path))
    assert (failed.cell.method, reason) == ("yarn", "TypeError: a fault of this method")
    assert {stage.cell.method for stage in ran if stage.kind == "score"} == {"ntk"}
    broken = {"yarn", "ntk"}
    with pytest.raises(UserError, match="TypeError: a fault of this method"):
        local.bench(SMOKE, ["yarn", "ntk"], 0, Run(tmp_path))


def test_weights_that_are_not_there_are_told_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTOR_WEIGHTS", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"DETECTOR_WEIGHTS is .*none\.pth, which is not a file"):
        local.bench(SMOKE, ["yarn"], 0, Run(tmp_path / "runs"))
    with pytest.raises(UserError, match=r"DETECTOR_WEIGHTS is .*none\.pth, which is not a file"):
        slurm.start(SMOKE, ["yarn"], 0, Run(tmp_path / "runs", "", "1"), "local")
    assert not (tmp_path / "runs").exists()


def test_deterministic_products_have_their_workspace_before_the_first_product(monkeypatch, tmp_path):
    """cuBLAS looks for it once, and the machine is measured before the training that is to be deterministic."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen = []
    monkeypatch.setattr(estimate, "announce", lambda *_: seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    monkeypatch.setattr(local, "run_all", lambda stages: [])
    for wanted in (False, True):
        local.bench(SMOKE, ["yarn"], 0, Run(tmp_path, deterministic=wanted))
    assert seen == [None, ":4096:8"]
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    def first(*_):
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        raise UserError("enough")

    monkeypatch.setattr(reproduce, "run_row", first)
    with pytest.raises(UserError, match="enough"):
        reproduce.reproduce(protocol.load("shapes"), "yarn", 0, Run(tmp_path, deterministic=True))
    assert seen == [None, *[":4096:8"] * 2]


def test_positions_are_made_in_full_precision_under_autocast():
    """In training and in sampling: products of matrices are what autocast rounds."""

    class Products(Method):
        title = "Products"

        def encode(self, grid_hw, *, time=None, draws=None):
            return Encoding(add=torch.full((grid_hw[0] * grid_hw[1], 1), 1 + 2**-12) @ torch.ones(1, self.protocol.core.width))

    method, seen = Products(small.protocol(), "16x24", 0), []
    method.predict = lambda x, time, label, encoding, crop: seen.append(encoding) or x
    with torch.autocast("cpu", torch.bfloat16):
        seen.append(method.encoding((4, 6)))
        small.loss(method)
    assert all(encoding.add.dtype == torch.float32 and (encoding.add == 1 + 2**-12).all() for encoding in seen)
    assert len(seen) == 2


def test_a_timed_encoding_is_tried_at_every_level(monkeypatch):
    class Late(Extrapolation):
        title, timed, trains_as = "Late", True, "extrapolation"

        def theta(self, trained, tested, time):
            return self.plain() / (0.0 if time is not None and time < 0.6 else 1.0)

    with pytest.raises(UserError, match="contains NaN or infinity"):
        tried(monkeypatch, Late)


def test_options_are_checked_before_any_work(monkeypatch, tmp_path):
    class Scaled(Extrapolation):
        title, trains_as = "Scaled", "extrapolation"

        @dataclass(frozen=True)
        class Options(Extrapolation.Options):
            exponent: float = 1.0

    load = registry.load
    monkeypatch.setattr(registry, "load", lambda name: Scaled if name == "yarn" else load(name))
    monkeypatch.setattr(estimate, "announce", lambda *_: pytest.fail("work began"))
    for option, told in (
        ("yarn.exponnt=2", "unknown option of Scaled 'exponnt'; did you mean 'exponent'"),
        ("yarn.exponent=two", r"options\.test_try_out\.exponent must be a number, not 'two'"),
        ("ntk.factor=2", r"options\.ntk\.factor=2: ntk is not among the methods of this run \(yarn\)"),
    ):
        with pytest.raises(UserError, match=told):
            local.bench(protocol.load("smoke", [f"options.{option}"]), ["yarn"], 0, Run(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_a_method_names_its_line():
    with pytest.raises(AttributeError) as caught:
        registry.load("extrapolation").theta(None, 1, 2, None)
    assert registry.told(caught.value).startswith("methods/extrapolation.py, line ")
    assert "AttributeError: 'NoneType'" in registry.told(caught.value)
    assert registry.told(UserError("as it is")) == "as it is"
