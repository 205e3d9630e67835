"""What every strategy keeps. It runs over the files of methods/: a new one is tested without touching this file."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import re
import sys
import types

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import latent

from benchmark import registry
from benchmark.files import ROOT, UserError
from benchmark.model.draws import Draws
from benchmark.model.method import Method

METHODS = registry.names()
TRAINING_FREE = [name for name in METHODS if registry.trained_name(name) != name]
NEVER_SHRINK = (
    "attention_scale",
    "dype",
    "dype_ntk",
    "imax",
    "interpolation",
    "ntk",
    "ntk_by_parts",
    "rdfc",
    "rdfc_released",
    "resonance",
    "rifle",
    "sincos_interp",
    "tasr",
    "yarn",
)  # training-free methods that leave grids below the training grid as they are; a new one need not
GRIDS = [(4, 6), (6, 4), (8, 12), (1, 1), (1, 7), (5, 1), (12, 12)]


def build(name: str, train: str = "16x24", **sections) -> Method:
    protocol = small.protocol(**sections)
    return small.fill(registry.load(name)(protocol, train, 0, protocol.options.get(name, {}))).eval()


def run(method: Method, grid_hw: tuple[int, int], time: float = 0.5) -> torch.Tensor:
    """The core's output for two images of a grid, [2, C', H, W]."""
    patch, channels = method.core.patch, method.protocol.core.channels
    x = small.normal(7, 2, channels, *(patch * n for n in grid_hw))
    crop = torch.tensor([[16.0, 24.0, 0, 0, 16, 24]] * 2)
    with torch.no_grad():
        encoding = method.encoding(grid_hw, time)
        return method.predict(x, torch.full((2,), 1000 * time), torch.tensor([0, 3]), encoding, crop)


def turns(encoding) -> list[torch.Tensor]:
    """The cosines and sines of an encoding: one pair, or one a block."""
    rotary = encoding.rotary or ()
    return [table for pair in rotary for table in pair] if isinstance(rotary, list) else list(rotary)


def tables(encoding) -> list[torch.Tensor]:
    """Every tensor of an encoding."""
    found = [encoding.add, *turns(encoding), *(encoding.mask or ()), *(encoding.bias or ())]
    return [item for item in found if isinstance(item, torch.Tensor)]


def check(encoding, depth: int, tokens: int, batch: int | None = None) -> None:
    """The shapes that the seam allows, for heads of 16 channels, two of them: nothing of size T x T has a batch axis."""
    square = (tokens, tokens)
    assert encoding.logit_scale > 0
    for field in (encoding.mask, encoding.bias):
        assert field is None or len(field) == depth
    assert not isinstance(encoding.rotary, list) or len(encoding.rotary) == depth
    for mask in encoding.mask or ():
        if isinstance(mask, torch.Tensor):
            assert mask.dtype == torch.bool
            assert mask.shape in {square, (2, *square)}
            assert mask.any(-1).all(), "a query that sees nothing"
    for bias in encoding.bias or ():
        assert bias is None or (bias.dtype == torch.float32 and bias.shape in {(2, *square), (1, *square)})
    assert not any(isinstance(value, torch.Tensor) for value in encoding.stem.values())
    allowed = {(tokens, 8), (1, 2, tokens, 8)} | ({(batch, 1, tokens, 8)} if batch else set())
    assert all(table.shape in allowed for table in turns(encoding))
    assert encoding.add is None or encoding.add.shape in {(tokens, 32)} | ({(batch, tokens, 32)} if batch else set())
    assert all(table.isfinite().all() for table in tables(encoding) if table.is_floating_point())


@pytest.mark.parametrize("name", METHODS)
def test_says_what_it_is(name):
    cls = registry.load(name)
    first = (sys.modules[cls.__module__].__doc__ or "").split("\n")[0]
    assert cls.title
    assert len(first) > 30, "the file begins with a docstring: the idea in one sentence"
    assert first.endswith("."), "the docstring's first line is a whole sentence"
    assert cls.trains_as is None or registry.load(cls.trains_as).trains_as is None
    assert registry.about(name).kind == ("trained" if cls.trains_as is None else "training-free")
    assert dataclasses.is_dataclass(cls.Options)
    with pytest.raises(UserError, match=r"unknown option .* .nonsense."):
        cls.make_options({"nonsense": 1})


@pytest.mark.parametrize("name", METHODS)
def test_says_where_it_was_published(name):
    cls = registry.load(name)
    if number := re.fullmatch(r"(\d\d)\d\d\.\d{5}", cls.paper):
        assert cls.year == 2000 + int(number[1]), "the year of an arXiv number"
    else:
        assert re.match(r"https://\S+$", cls.paper), f"an arXiv number or a URL, not '{cls.paper}'"
        assert 2017 <= cls.year <= datetime.date.today().year
    # A method of another paper than the one whose file it builds on says so itself.
    if problem := unsourced(cls):
        pytest.fail(problem)


def unsourced(cls: type[Method]) -> str:
    """What is wrong with where a method's paper and year come from; "" for nothing.

    Its own class gives both; or it is of the paper of the method that it derives from, and its docstring names that method's
    file. That is never `extrapolation`, from which rotary methods of any paper derive.
    """
    file = module_of(cls)
    paper, year = (next(module_of(base) for base in cls.__mro__ if key in vars(base)) for key in ("paper", "year"))
    docs = {
        module_of(base): sys.modules[base.__module__].__doc__ or ""
        for base in cls.__mro__
        if base.__module__.startswith("methods.")
    }
    if paper != year or (paper != file and (paper == registry.shared() or f"methods/{paper}.py" not in docs[file])):
        return (
            f"methods/{file}.py: give `paper` and `year` in its own class, now inherited from {paper} and {year}; or, if it is "
            "of the same paper as a base, name that file in the docstring"
        )
    return "" if any(cls.paper in doc for doc in docs.values()) else f"methods/{file}.py: the docstring does not name the paper"


def module_of(cls: type) -> str:
    return cls.__module__.rpartition(".")[2]


@pytest.mark.parametrize(
    ("base", "doc", "body", "said"),
    [
        ("extrapolation", "Mine (2400.00001).", {"paper": "2400.00001", "year": 2024}, ""),
        ("extrapolation", "Mine.", {}, "methods/mine.py: give `paper` and `year` in its own class"),
        ("extrapolation", "Mine, as methods/extrapolation.py.", {}, "methods/mine.py: give `paper` and `year` in its own class"),
        ("extrapolation", "Mine (2400.00001).", {"paper": "2400.00001"}, "methods/mine.py: give `paper` and `year`"),
        ("yarn", "Mine.", {}, "methods/mine.py: give `paper` and `year` in its own class, now inherited from yarn and yarn"),
        ("yarn", "Mine, an option of methods/yarn.py.", {}, ""),
        ("yarn", "Mine.", {"paper": "2400.00001", "year": 2024}, "methods/mine.py: the docstring does not name the paper"),
    ],
)
def test_a_paper_is_not_inherited_unseen(base, doc, body, said, monkeypatch):
    module = types.ModuleType("methods.mine", doc)
    monkeypatch.setitem(sys.modules, "methods.mine", module)
    found = unsourced(type("Mine", (registry.load(base),), {"__module__": "methods.mine", **body}))
    assert found.startswith(said) if said else not found


@pytest.mark.parametrize("name", METHODS)
def test_says_whether_it_changes_pictures_in_training(name):
    """What is read without torch, from which a plan knows whether latents can be written beforehand, is what training does."""
    cls = registry.load(name)
    for options in [{}, {cls.augments: 0.0}] if cls.augments else [{}]:
        does = cls.augmentation_of(cls.make_options(options))[0] != "center_crop"
        assert registry.augments(name, options) == does, options


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("ledit", "dilated", -0.1),
        ("ledit_finetune", "dilated", 1.1),
        ("rope_mixed", "base", 0.0),
        ("spiral_rope", "fastest", 0.0),
        *((name, *values) for name in ("rpe2d", "rpe2d_positions", "rope_augmented")
          for values in (("resize", 0.9), ("resize", -1.0), ("uncropped", 1.5), ("uncropped", -0.5))),
    ],
)  # fmt: skip
def test_refuses_options_out_of_their_range(name, option, wrong):
    with pytest.raises(UserError, match=f"{option} is {wrong:g}, must be"):
        registry.load(name).make_options({option: wrong})


@pytest.mark.parametrize(
    ("name", "option", "wrong", "wanted"),
    [
        ("spiral_rope", "directions", "8", "a whole number, not '8'"),
        ("rpe2d", "resize", "inf", "a number, not 'inf'"),
        ("rpe2d", "micro_conditioning", 1, "true or false, not 1"),
        ("rpe2d", "spacing", 3, "a text, not 3"),
        ("imax", "factor", True, "a number, not True"),
    ],
)
def test_options_are_not_converted(name, option, wrong, wanted):
    with pytest.raises(UserError, match=rf"^options\.{name}\.{option} must be {wanted}$"):
        registry.load(name).make_options({option: wrong})


@pytest.mark.parametrize("option", ["share", "period"])
def test_a_band_that_would_turn_backwards_is_refused(option):
    with pytest.raises(UserError, match="share and period must be above 0"):
        registry.load("rifle").make_options({option: -1.0})


@pytest.mark.parametrize("name", METHODS)
def test_is_in_the_table_of_contents(name):
    cls = registry.load(name)
    lines = (ROOT / "methods" / "README.md").read_text(encoding="utf-8").splitlines()
    row = [line for line in lines if f"| `{name}` |" in line]
    assert row, f"add a row for {name} to the table in methods/README.md"
    assert len(row) == 1, f"{name} has {len(row)} rows in methods/README.md"
    for part in (f"| {cls.title} |", registry.about(name).kind, cls.trains_as or "", cls.paper, cls.year):
        assert f"{part}" in row[0], f"the row of {name} in methods/README.md does not say {part}"


@pytest.mark.parametrize("name", METHODS)
def test_its_title_is_its_own(name):
    same = [other for other in METHODS if other != name and registry.load(other).title == registry.load(name).title]
    assert "title" in vars(registry.load(name)), "give the class a title"
    assert not same, f"methods/{same[0]}.py has this title"


@pytest.mark.parametrize("name", METHODS)
def test_runs_on_every_grid_finite_and_the_same_twice(name):
    method, other = build(name), build(name)
    for grid_hw in GRIDS:
        first = run(method, grid_hw)
        assert first.shape == (2, 3, 4 * grid_hw[0], 4 * grid_hw[1])
        assert first.isfinite().all()
        assert torch.equal(first, run(method, grid_hw))
        assert torch.equal(first, run(other, grid_hw)), "depends on more than the weights"


@pytest.mark.parametrize("name", METHODS)
def test_tables_are_float32_under_autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        encoding = build(name).encoding((8, 12), 0.5)
    wrong = {str(table.dtype) for table in tables(encoding)} - {"torch.float32", "torch.bool"}
    assert not wrong, f"tensors of an encoding are float32 or bool, not {wrong}"


@pytest.mark.parametrize("name", METHODS)
def test_the_stem_of_sampling_is_told_the_same_at_every_call(name):
    """An untimed encoding is made once a grid: chance, or the noise level, may change what the stem is told in training only."""
    method = build(name)
    told = [method.encode(grid_hw, time=time).stem for grid_hw in GRIDS[:3] for time in (0.0, 0.5, 1.0)]
    assert all(each == told[0] for each in told)


@pytest.mark.parametrize("name", METHODS)
def test_one_image_does_not_see_another(name):
    method = build(name)
    x, crop = small.normal(7, 3, 3, 32, 16), torch.tensor([[16.0, 24.0, 0, 0, 16, 24]] * 3)
    time, label = torch.tensor([100.0, 500, 900]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        encoding = method.encoding((8, 4), 0.5)
        together = method.predict(x, time, label, encoding, crop)
        alone = method.predict(x[1:2], time[1:2], label[1:2], encoding, crop[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_close_to_float32(name):
    method = build(name)
    for grid_hw in [(4, 6), (12, 5)]:
        exact = run(method, grid_hw)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = run(method, grid_hw).float()
        assert (rounded - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


@pytest.mark.parametrize("name", METHODS)
def test_weights_do_not_depend_on_the_grid_or_on_the_random_state(name):
    cells = {"16x24": small.CELLS["16x24"], "8x8": ["8x8", "32x48"]}
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    protocol = small.protocol(cells)
    one = registry.load(name)(protocol, "16x24", 3)
    assert torch.equal(state, torch.random.get_rng_state()), "building a method moved the caller's random state"
    torch.manual_seed(2)
    two = registry.load(name)(protocol, "8x8", 3)
    run(one.eval(), (9, 7))
    shapes = {key: value.shape for key, value in one.state_dict().items()}
    # A table that is what the method learns may have the training grid's size: the class names it.
    shapes = {key: shape for key, shape in shapes.items() if key not in registry.load(name).grid_sized}
    assert shapes.items() <= {key: value.shape for key, value in two.state_dict().items()}.items()
    again = registry.load(name)(protocol, "16x24", 3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_checkpoint_round_trip(name, tmp_path):
    method = build(name)
    torch.save(method.state_dict(), tmp_path / "weights.pt")
    other = registry.load(name)(method.protocol, "16x24", 5).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(run(method, (8, 12)), run(other, (8, 12)))


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_training_free_methods_equal_their_base_at_the_training_grid(name):
    cls = registry.load(name)
    protocol = small.protocol({"16x24": ["32x48"], "8x8": ["8x8"]}, switches={"attention_scale": "none"})
    for train in protocol.cells:
        method, base = (small.fill(c(protocol, train)).eval() for c in (cls, registry.load(cls.trains_as)))
        method.load_state_dict(base.state_dict())
        for time in (0.0, 0.2, 0.5, 0.9, 1.0):
            mine, theirs = method.encoding(method.train_grid, time), base.encoding(method.train_grid, time)
            assert mine.logit_scale == theirs.logit_scale
            assert len(tables(mine)) == len(tables(theirs)) > 0
            assert all(torch.equal(a, b) for a, b in zip(tables(mine), tables(theirs), strict=True))
            assert torch.equal(run(method, method.train_grid, time), run(base, method.train_grid, time))


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_training_free_method_differs_from_its_base_beyond_the_training_grid(name):
    method, base = latent(name), latent(registry.trained_name(name))
    pairs = [(method.encoding(grid, time), base.encoding(grid, time)) for grid in ((32, 32), (16, 32)) for time in (0.3, 0.9)]
    same = all(
        mine.logit_scale == theirs.logit_scale and all(map(torch.equal, tables(mine), tables(theirs))) for mine, theirs in pairs
    )
    assert not same, "equals its base at every grid; if it depends on the noise level, it says `timed = True`"


@pytest.mark.parametrize("name", NEVER_SHRINK)
@pytest.mark.parametrize("grid_hw", [(8, 8), (16, 5)])
def test_training_free_methods_place_tokens_as_their_base_does_below_the_training_grid(name, grid_hw):
    """Nothing is stretched there, nor shrunk; the scale of logits, which may follow the number of tokens, is no place."""
    method, base = latent(name), latent(registry.trained_name(name))
    for time in (0.1, 0.6):
        mine, theirs = tables(method.encoding(grid_hw, time)), tables(base.encoding(grid_hw, time))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_training_step_is_a_function_of_seed_and_step(name):
    method = build(name).train()
    value = small.loss(method, 3)
    assert value.isfinite()
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    torch.manual_seed(99)
    assert torch.equal(value, small.loss(method, 3)), "random numbers of training come from `draws` (benchmark/model/draws.py)"
    assert not torch.equal(value, small.loss(method, 4))


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_train_on_the_numbers_of_one(name):
    method = build(name).train()
    whole = small.batch(method.protocol, "16x24", 0)
    halves = []
    for first in (0, 2):
        part = {key: value[first : first + 2] for key, value in whole.items() if key in ("image", "label", "crop", "key")}
        halves.append(method.loss(part | {"step": 0, "rows": (first, 4)}))
    torch.testing.assert_close(torch.stack(halves).mean(), method.loss(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_everything_is_made_on_the_methods_device(name):
    """On torch's device without memory any tensor left on another one is an error: what a GPU would say, without a GPU."""
    method = build(name).to("meta")
    assert all(table.device.type == "meta" for table in tables(method.encoding(method.train_grid, 0.5)))
    batch = small.batch(method.protocol, "16x24", 0)
    moved = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    loss = method.loss(moved)
    loss.backward()
    assert loss.device.type == "meta"


def turned_by_gradients(encoding) -> bool:
    return any(table.requires_grad for table in tables(encoding))


@pytest.mark.parametrize("name", METHODS)
def test_a_copy_is_whole(name):
    """Weight averaging copies the module between steps, with whatever it has cached."""
    method = build(name).train()
    small.loss(method).backward()
    learned = turned_by_gradients(method.eval().encoding((8, 12), 0.5))
    assert not learned or method.learns_positions, "a method whose encoding has gradients says `learns_positions = True`"
    run(method, (8, 12))
    assert torch.equal(run(copy.deepcopy(method), (8, 12)), run(method, (8, 12)))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_learned_is_not_cached(name):
    """An encoding made before a step of training is not the one used after it."""
    method = build(name)
    before = run(method, (8, 12))
    with torch.no_grad():
        for key, parameter in method.named_parameters():
            if not key.startswith(("core.", "stem.", "conditioner.")):
                parameter.add_(0.5)
    assert torch.equal(before, run(method, (8, 12))) != method.learns_positions


@pytest.mark.parametrize("name", METHODS)
def test_samples_depend_on_seed_and_index_alone(name):
    method = build(name)
    four = method.generate("24x20", 1, [0, 1, 2, 3])
    assert four.shape == (4, 3, 24, 20)
    two = method.generate("24x20", 1, [3, 1])
    torch.testing.assert_close(two, four[[3, 1]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(method.generate("24x20", 2, [0]), four[:1], atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=8, deadline=None)
@given(h=st.integers(1, 12), w=st.integers(1, 12))
def test_encoding_of_any_grid(name, h, w):
    method = build(name, core={"depth": 1})
    for time in (0.0, 0.5, 1.0):
        with torch.no_grad():
            encoding = method.encoding((h, w), time)
        check(encoding, depth=1, tokens=h * w)


@pytest.mark.parametrize("name", METHODS)
def test_training_draws_are_per_sample_or_shared(name):
    method = build(name).train()
    encoding = method.encode((4, 6), draws=Draws(0, 5, (0, 4), 4))
    check(encoding, depth=2, tokens=24, batch=4)
    assert encoding.logit_scale == 1.0, "nothing is scaled at the training grid"


@pytest.mark.parametrize("name", METHODS)
def test_a_training_grid_of_one_token_or_one_row(name):
    for train in ("4x4", "4x16"):
        protocol = small.protocol({train: [train, "8x8"]})
        method = small.fill(registry.load(name)(protocol, train)).eval()
        assert small.loss(method).isfinite()
        assert method.generate("8x8" if train == "4x4" else train, 0, [0, 1]).isfinite().all()


@pytest.mark.parametrize("name", ["ledit", "lookhere", "rope_mixed", "rpe2d"])
def test_a_training_step_compiles_into_one_graph(name):
    """With a stem, biases of every block, learned frequencies, and drawn tables with a conditioner."""
    method = registry.build(name, small.protocol(), "16x24", 0).train()

    def losses() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = small.loss(method, 0)
        return [small.loss(method, 0), rounded]

    expected = losses()
    torch.compiler.reset()
    method.core.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(losses(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("ledit", {"dilated": 1.0}, "LEDiT: dilated has no effect with recipe=scratch"),
        ("ledit_finetune", {"norm": False}, "norm has no effect with recipe=finetune"),
        (
            "ledit_causal",
            {"convolution": False, "depthwise": False, "residual": False},
            "depthwise, residual have no effect with",
        ),
        ("ledit_convolution", {"causal": False, "scan": "raster"}, "scan has no effect with causal=false"),
        ("rpe2d", {"micro_conditioning": False, "conditioning": "pixels"}, "conditioning has no effect with micro_cond"),
        ("rpe2d_positions", {"uncropped": 0.3}, "uncropped has no effect with resize=0"),
        ("rope_augmented", {"resize": 0.0, "uncropped": 0.3}, "uncropped has no effect with resize=0"),
        ("dype", {"strength": 9.0}, "strength has no effect with form=yarn"),
        ("dype_ntk", {"temperature": 1.0}, "temperature has no effect with form=ntk"),
        ("dype_ntk", {"beta_0": 2.0}, "beta_0 has no effect with form=ntk"),
        ("rifle", {"band": 1, "period": 2.0}, "period has no effect with band=1"),
    ],
)
def test_an_option_without_effect_is_refused(name, options, told):
    """It would be part of the key: another training with the same numbers."""
    with pytest.raises(UserError, match=told):
        registry.load(name).make_options(options)
