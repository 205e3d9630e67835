"""Protocols: everything that could change a number, in one YAML file, merged and validated once.

It stands at the bottom of the import order and knows no torch: the leaderboard has to read protocols too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
from annotated_types import Interval, Len

from benchmark import registry
from benchmark.files import UserError, checked_name, digest, hash_of, shown, state_of, unknown
from benchmark.inputs import STRICT, matching, parsed, read_yaml, yaml_value

FOLDER = Path(__file__).parent / "protocols"

SOLVERS = {"flow": ("euler", "heun"), "ddpm": ("ddpm", "ddim")}


# Every field declares what it may hold; a number its bounds, beyond which no run makes sense or no machine has room.
Steps = Annotated[int, Interval(ge=1, le=10**9)]
Some = Annotated[int, Interval(ge=4, le=10**8)]  # images; precision needs a third neighbour
Width = Annotated[int, Interval(ge=1, le=2**16)]
Rate = Annotated[float, Interval(gt=0, le=10)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Precision = Literal["bf16", "float32"]
Line = Annotated[str, matching(r"[^\p{C}]*", "one line")]
LATER = "later"  # marks a field added since there are records: left out of the rules while it holds its default
SIDE = 16_384  # pixels: the longest side of a size


class Section:
    """Part of a protocol, as its section in the file says it."""

    __pydantic_config__ = STRICT


@dataclass
class Data(Section):
    card: Line = "shapes"  # a file name in datasets/
    count: Annotated[int, Interval(ge=0, le=10**9)] = 0  # training images of a drawn data set; 0 takes the card's
    representation: Literal["pixels", "latents"] = "pixels"  # what the core sees: pixels, or latents of the card's autoencoder
    factor: Annotated[int, Interval(ge=1, le=64)] = 1  # pixels per latent and axis: 1 for pixels, 8 for Stable Diffusion's
    on_corrupt: Literal["error", "skip"] = "error"  # "skip": one that cannot be decoded is replaced by the next, and counted


@dataclass
class Core(Section):
    width: Width = 192
    depth: Annotated[int, Interval(ge=1, le=1024)] = 6
    heads: Annotated[int, Interval(ge=1, le=1024)] = 3
    patch: Annotated[int, Interval(ge=1, le=256)] = 4
    channels: Annotated[int, Interval(ge=1, le=1024)] = 3  # of the data: 3 for pixels, 4 for latents
    classes: Annotated[int, Interval(ge=1, le=10**6)] = 8
    mlp_ratio: Annotated[float, Interval(gt=0, le=64)] = 4.0
    rope_base: Annotated[float, Interval(gt=1, le=1e12)] = 10000.0  # of every rotary method; 100 is usual for short grids


@dataclass
class Objective(Section):
    name: Literal["flow", "ddpm"] = "flow"
    time: Literal["logit_normal", "uniform"] = "logit_normal"  # the density of training times (flow only)
    shift: Annotated[float, Interval(gt=0, le=1000)] = 1.0  # above 1, training and sampling times lie nearer to noise (flow only)
    # The core's time input and the direction of its velocity (flow only): see FlowMatching.
    convention: Annotated[Literal["dit", "repa", "sit"], LATER] = "dit"
    class_dropout: Share = 0.1  # probability of the null class, for classifier-free guidance


@dataclass
class Train(Section):
    steps: Steps = 400_000
    batch: Annotated[int, Interval(ge=1, le=10**6)] = 256  # over all devices
    lr: Rate = 1e-4
    lr_of: Annotated[dict[str, Rate], LATER] = field(default_factory=dict)  # of trained methods: {ledit: 1.0e-3}
    optimizer: Annotated[Literal["adamw", "muon"], LATER] = "adamw"  # Muon is for the matrices of the blocks' attention and MLP
    muon_lr: Annotated[Rate, LATER] = 0.02  # of those matrices; lr_of changes it by the same factor
    warmup: Annotated[int, Interval(ge=0, le=10**9)] = 0  # steps of linear warm-up
    decay: Annotated[int, Interval(ge=0, le=10**9)] = 0  # steps of linear decay to zero at the end
    betas: Annotated[list[Share], Len(2, 2)] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: Annotated[float, Interval(ge=0, le=100)] = 0.0
    clip: Annotated[float, Interval(ge=0, le=1e6)] = 0.0  # gradient norm; 0 is off
    ema: Share = 0.9999
    precision: Precision = "bf16"
    flip: bool = True  # random horizontal flips
    init: Annotated[str, matching(r"[^\p{C}]*", "one line", 4096)] = ""  # a checkpoint to start from; see `identity`


@dataclass
class Sample(Section):
    solver: Literal["euler", "heun", "ddpm", "ddim"] = "euler"
    steps: Annotated[int, Interval(ge=1, le=10**6)] = 250
    guidance: Annotated[float, Interval(ge=0, le=1000)] = 1.5
    guidance_channels: Literal["all", "three"] = "all"  # DiT's code guides the first three latent channels only
    count: Some = 50_000
    batch: Annotated[int, Interval(ge=1, le=10**6)] = 64  # images per forward; part of the protocol: it moves the last bits
    labels: Annotated[Literal["balanced", "random"], LATER] = "balanced"  # classes take turns, or are drawn for every image
    precision: Precision = "bf16"


@dataclass
class Score(Section):
    detector: Line = "inception"  # one that gives an inception score, which every record holds
    reference: Some = 50_000  # images in the reference statistics
    nearest: Some = 10_000  # real images for precision and recall; ADM's references hold 10,000 up to 256x256, 1,000 at 512x512
    splits: Annotated[int, Interval(ge=0, le=10**6)] = 0  # of the inception score; 0 follows the detector, as the field does

    @property
    def kept(self) -> int:
        """Real images whose features a reference keeps."""
        return min(self.nearest, self.reference)


@dataclass
class Switches(Section):
    """What belongs to the protocol and not to a method: set once for all rows of a table, and printed with it."""

    attention_scale: Literal["none", "jin", "fitv2"] = "none"
    timestep_shift: Literal["none", "sqrt_area"] = "none"


DDPM_LEVELS = 1000  # noise levels of a DDPM model
Cells = Annotated[dict[str, Annotated[list[str], Len(1, 1000)]], Len(1, 1000)]


@dataclass
class Protocol:
    """A protocol. `cells` maps a training size to the sizes it is tested at; every pair is a cell of the table."""

    __pydantic_config__ = STRICT

    name: Line
    title: Line
    cells: Cells
    data: Data = field(default_factory=Data)
    core: Core = field(default_factory=Core)
    objective: Objective = field(default_factory=Objective)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)
    score: Score = field(default_factory=Score)
    switches: Switches = field(default_factory=Switches)
    options: dict[str, dict[str, pydantic.JsonValue]] = field(default_factory=dict)  # hyper-parameters of methods
    methods: list[Line] = field(default_factory=list)  # what a sweep runs, or with a minus leaves out; empty: all of methods/
    ranked: bool = True  # whether its records belong into leaderboards/
    rehearses: Line = ""  # the longer protocol whose rules these are but for steps, samples and cells; its tables say so
    custom: bool = False  # made with overrides: never written into leaderboards/
    source: str = ""  # what `load` was given, and the overrides: enough to load the same rules in another process
    overrides: list[str] = field(default_factory=list)
    # Whether train.init is the place of a file, given with the run or in a protocol of one's own, and not what a protocol asks
    # for: a file that happens to have that name in the working directory is not what it asks for.
    init_given: bool = False

    @property
    def hash(self) -> str:
        """Identity of the rules. Names, titles and the list of methods are not rules."""
        return digest(self.rules())

    def rules(self) -> dict[str, Any]:
        """All that could change a number, as plain values."""
        return {**self._parts(*SECTIONS), "cells": self.cells, "options": self.options}

    def _parts(self, *names: str) -> dict[str, Any]:
        parts = {name: _plain(getattr(self, name)) for name in names}
        parts["train"]["init"] = identity(self.train.init) if self.init_given else self.train.init
        return parts

    def checkpoint(self) -> str:
        """The file that trainings start from; "" for none.

        Raises:
            UserError: the protocol asks for one, and its place was not given; or there is none at that place.
        """
        if self.train.init and not self.init_given:
            raise UserError(f"{self.name} starts from a checkpoint ({self.train.init}): give the file as train.init=PATH")
        if self.train.init and not os.path.isfile(self.train.init):
            raise UserError(f"train.init: {self.train.init} does not exist; give the path of a checkpoint")
        return self.train.init

    def pairs(self) -> list[tuple[str, str]]:
        """Every (training size, test size), in the order of the file."""
        return [(train, test) for train, tests in self.cells.items() for test in tests]

    def grid(self, size: str) -> tuple[int, int]:
        """Tokens per axis (h, w) at a size in pixels such as "64x48"."""
        height, width = size_hw(size)
        token = self.core.patch * self.data.factor
        if height % token or width % token:
            raise UserError(f"{self.name}: size {size} is not a multiple of {token} pixels per token")
        return height // token, width // token

    def latent_hw(self, size: str) -> tuple[int, int]:
        """What the core's input measures at a size in pixels: pixels themselves, or latents."""
        height, width = size_hw(size)
        return height // self.data.factor, width // self.data.factor

    def largest(self, train: str) -> list[int]:
        """All that a method may know of the sizes it will be tested at: the longest axis and the largest grid, in tokens."""
        grids = [self.grid(size) for size in [train, *self.cells[train]]]
        return [max(map(max, grids)), max(map(math.prod, grids))]

    def training(self, train: str) -> dict[str, Any]:
        """The part of the rules that a training at size `train` depends on."""
        return {**self._parts("data", "core", "objective", "train"), "size": train, "largest": self.largest(train)}

    @property
    def splits(self) -> int:
        """Splits of the inception score of a cell."""
        return self.score.splits or registry.detector_facts(self.score.detector).splits(self.sample.count)

    def sampling(self) -> dict[str, Any]:
        """The part of the rules that sampling from a checkpoint depends on, besides the sizes."""
        return {"sample": _plain(self.sample), "switches": _plain(self.switches)}


SECTIONS = {cls.__name__.lower(): cls for cls in (Data, Core, Objective, Train, Sample, Score, Switches)}


def _plain(section: Any) -> dict[str, Any]:
    """A section's fields as plain values, without those that came later and hold their default."""
    kind: Any = type(section)
    late = _late(kind)
    return {name: value for name, value in vars(section).items() if name not in late or value != late[name]}


@functools.cache
def _late(cls: Any) -> dict[str, Any]:
    """{field: default} of the fields that are marked LATER."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        item.name: _default(item) for item in dataclasses.fields(cls) if LATER in getattr(hints[item.name], "__metadata__", ())
    }


def _default(item: dataclasses.Field) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def size_hw(size: str) -> tuple[int, int]:
    """(height, width) in pixels from "64x48"."""
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", size)
    if not match:
        raise UserError(f"size {shown(size)} is not HEIGHTxWIDTH, such as 64x48")
    if max(len(side) for side in match.groups()) > 9 or max(map(int, match.groups())) > SIDE:
        raise UserError(f"size {shown(size)} has a side above {SIDE} pixels")
    return int(match[1]), int(match[2])


def size_name(height: int, width: int) -> str:
    return f"{height}x{width}"


def ratio(train: str, test: str) -> float:
    """Test size over training size per axis, as the square root of the areas' ratio."""
    return math.sqrt(math.prod(size_hw(test)) / math.prod(size_hw(train)))


def identity(init: str) -> str:
    """What the rules say of the checkpoint that a training starts from, given as the path of a file.

    A file is known by its content, "sha256:<hash>", wherever it lies. A protocol that asks for a checkpoint holds such a hash, or
    a name while nobody has pinned it.
    """
    path = Path(init)
    if not init or not os.path.isfile(path):
        return init
    return f"sha256:{hash_of(*state_of(path.resolve()))}"


def names() -> list[str]:
    """The protocols there are: the files of benchmark/protocols/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of a protocol: that which a path names, or one of benchmark/protocols/."""
    return Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"


def is_outside(path: Path) -> bool:
    return path.parent.resolve() != FOLDER.resolve()


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Protocol:
    """Reads, merges and validates a protocol.

    Args:
        name: a file name in benchmark/protocols/ without its ending, or the path of a YAML file elsewhere.
        overrides: dot-list assignments such as "train.steps=200". Any of them makes the run a custom one.

    Raises:
        UserError: unknown protocol or key, a value of the wrong type, or rules that contradict each other.
    """
    path = path_of(name)
    if "\0" in name or not os.path.isfile(path):
        raise unknown("protocol", name, names())
    checked_name(path.stem, "the name of a protocol's file")
    outside = is_outside(path)
    values = functools.reduce(_merged, [*_layers(path), *map(_assigned, overrides)])
    for key in ABOUT:
        if key in values:
            raise UserError(f"protocol {path.stem}: {key} cannot be set in a file; it follows from how a protocol is loaded")
    given = [assignment for assignment in overrides if assignment.startswith("train.init=")]
    about = {"name": path.stem, "custom": bool(overrides) or outside, "source": name, "overrides": list(overrides)}
    values = {"title": "", **values, **about}
    protocol = parsed(_model(), values, f"protocol {path.stem}", SETTINGS, "the protocol")
    protocol.init_given = bool(given) or (outside and "init" in _layers(path)[-1].get("train", {}))
    _check_relations(protocol)
    if given:
        protocol.checkpoint()
    if given and len(given) == len(overrides) and not outside:
        # Where the very file lies that the rules ask for is no rule.
        protocol.custom = protocol.hash != load(name).hash
    return protocol


ABOUT = ("name", "custom", "source", "overrides", "init_given")


def _merged(below: Any, above: Any) -> Any:
    """Plain values on top of others: fields of sections are merged, all else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _merged(below[key], value) if key in below else value for key, value in above.items()}}


@functools.cache
def _model() -> pydantic.TypeAdapter[Protocol]:
    """Built when first needed: that takes a tenth of a second, and `--help` needs none."""
    return pydantic.TypeAdapter(Protocol)


def _layers(path: Path) -> list[dict[str, Any]]:
    """A protocol's file, after that of the protocol which it names as its `base`."""
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return [content]
    if base not in names() or (FOLDER / f"{base}.yaml").resolve() == path.resolve():  # a copy elsewhere may have the name
        raise unknown(f"base of {path.stem}", str(base)[:60], [name for name in names() if name != path.stem])
    below = _layers(FOLDER / f"{base}.yaml")
    for layer in below:
        layer.pop("rehearses", None)  # what the base says of itself alone
    return [*below, content]


SETTINGS = (*(f"{name}.{item.name}" for name, cls in SECTIONS.items() for item in dataclasses.fields(cls)), "methods")


def _assigned(assignment: str) -> dict[str, Any]:
    """An override such as "train.steps=200" as nested fields; an unknown key is refused with the nearest there is."""
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"{shown(assignment)} is not an override: write section.key=value, such as train.steps=200")
    section, *rest = key.split(".")
    free = section in ("options", "cells") or rest[:1] == ["lr_of"]  # whose keys are methods or sizes
    if not (free and rest and all(rest)) and key not in SETTINGS:
        raise unknown("setting", key[:100], SETTINGS)
    value = yaml_value(text, key)
    for part in reversed(rest):
        value = {part: value}
    return {section: value}


def _check_relations(protocol: Protocol) -> None:
    """What fields say of each other; ranges of single ones stand with them."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"{protocol.name}: {message}")

    pixels, core = protocol.data.representation == "pixels", protocol.core
    need(
        pixels == (protocol.data.factor == 1),
        f"data.factor is {protocol.data.factor}, but must be {'1 for pixels' if pixels else 'above 1 for latents'}",
    )
    need(not pixels or core.channels == 3, f"core.channels is {core.channels}; pixels have 3")
    if protocol.score.detector not in (known := registry.detectors(scoring=True)):
        raise unknown("score.detector", protocol.score.detector, known)
    if protocol.rehearses and protocol.rehearses not in names():
        raise unknown(f"protocol that {protocol.name} rehearses", protocol.rehearses, names())
    for train, tests in protocol.cells.items():
        need(len(set(tests)) == len(tests), f"a test size of {train} is listed twice")
        for size in [train, *tests]:
            protocol.grid(size)
    need(core.width % core.heads == 0, f"core.width {core.width} is not divisible by {core.heads} heads")
    head = core.width // core.heads
    need(head % 4 == 0, f"head width {head} is not divisible by 4: rotary positions need pairs on two axes")
    need(int(core.width * core.mlp_ratio) >= 1, f"core.mlp_ratio {core.mlp_ratio:g} leaves no hidden unit")
    solvers = SOLVERS[protocol.objective.name]
    if protocol.sample.solver not in solvers:
        raise unknown(f"solver for the {protocol.objective.name} objective", protocol.sample.solver, solvers)
    steps = protocol.sample.steps
    allowed = protocol.objective.name == "flow" or 2 <= steps <= DDPM_LEVELS
    need(allowed, f"sample.steps is {steps}; a DDPM model allows 2 to {DDPM_LEVELS}")
    shifted = protocol.switches.timestep_shift != "none"
    need(not shifted or protocol.objective.name == "flow", "switches.timestep_shift is for flow models only")
    for name in ("time", "shift", "convention"):
        usual = getattr(protocol.objective, name) == getattr(Objective, name)
        need(usual or protocol.objective.name == "flow", f"objective.{name} is for flow models only")
    need(protocol.train.muon_lr == Train.muon_lr or protocol.train.optimizer == "muon", "train.muon_lr is for Muon only")
    nulls = protocol.objective.class_dropout > 0 or protocol.sample.guidance == 1 or protocol.train.init
    need(bool(nulls), "guidance needs a null class: give objective.class_dropout above 0, or sample.guidance=1")
    splits, count = protocol.score.splits, protocol.sample.count
    need(splits <= count, f"score.splits must be 0 (the detector's rule) to {count}: every split needs an image")
    for name, values in protocol.options.items():
        need(_finite(values), f"options.{shown(name)} must hold finite numbers")


def _finite(value: Any) -> bool:
    """Whether the numbers in plain values are finite, at any depth."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
