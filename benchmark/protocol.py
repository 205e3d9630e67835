"""The rules of a contest: everything that could change a number, in one YAML file, merged and validated once.

It stands at the bottom of the import order and knows no torch: the leaderboard has to read protocols too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.files import UserError, digest, file_hash, unknown

FOLDER = Path(__file__).parent / "protocols"

CHOICES = {
    "data.representation": ("pixels", "latents"),
    "data.on_corrupt": ("error", "skip"),
    "objective.name": ("flow", "ddpm"),
    "objective.time": ("logit_normal", "uniform"),
    "sample.solver": ("euler", "heun", "ddpm", "ddim"),
    "sample.guidance_channels": ("all", "three"),
    "switches.attention_scale": ("none", "jin", "fitv2"),
    "switches.timestep_shift": ("none", "sqrt_area"),
    "train.precision": ("bf16", "float32"),
    "sample.precision": ("bf16", "float32"),
    "score.detector": ("inception", "shapes"),  # those that give an inception score, which every record holds
}
SOLVERS = {"flow": ("euler", "heun"), "ddpm": ("ddpm", "ddim")}


@dataclass
class Data:
    card: str = "shapes"  # a file name in datasets/
    count: int = 0  # training images of a drawn data set; 0 takes the card's
    representation: str = "pixels"  # what the core sees: pixels, or latents of the card's autoencoder
    factor: int = 1  # pixels per latent and axis: 1 for pixels, 8 for Stable Diffusion's autoencoder
    on_corrupt: str = "error"  # or "skip": a sample that cannot be decoded is replaced by the next one, and counted


@dataclass
class Core:
    width: int = 192
    depth: int = 6
    heads: int = 3
    patch: int = 4
    channels: int = 3  # of the data: 3 for pixels, 4 for latents
    classes: int = 8
    mlp_ratio: float = 4.0
    rope_base: float = 10000.0  # the base of every rotary method; 100 is usual for short grids


@dataclass
class Objective:
    name: str = "flow"
    time: str = "logit_normal"  # the density of training times (flow only)
    shift: float = 1.0  # above 1, training times and sampling steps lie nearer to noise (flow only)
    class_dropout: float = 0.1  # probability of the null class, for classifier-free guidance


@dataclass
class Train:
    steps: int = 400_000
    batch: int = 256  # over all devices
    lr: float = 1e-4
    warmup: int = 0  # steps of linear warm-up
    decay: int = 0  # steps of linear decay to zero at the end
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.0
    clip: float = 0.0  # gradient norm; 0 is off
    ema: float = 0.9999
    precision: str = "bf16"
    flip: bool = True  # random horizontal flips
    init: str = ""  # a checkpoint to fine-tune from; the rules know it by its content, see `identity`


@dataclass
class Sample:
    solver: str = "euler"
    steps: int = 250
    guidance: float = 1.5
    guidance_channels: str = "all"  # "three" repeats DiT's code, which guides the first three latent channels only
    count: int = 50_000
    batch: int = 64  # images per forward; part of the protocol because it moves the last bits
    precision: str = "bf16"


@dataclass
class Score:
    detector: str = "inception"
    reference: int = 50_000  # images in the reference statistics
    nearest: int = 10_000  # images of either side used for precision and recall
    splits: int = 10  # of the inception score


@dataclass
class Switches:
    """What belongs to the contest and not to a method: set once for all rows of a table, and printed with it."""

    attention_scale: str = "none"
    timestep_shift: str = "none"


@dataclass
class Protocol:
    """A contest. `cells` maps a training size to the sizes it is tested at; every pair is a cell of the table."""

    name: str
    title: str
    cells: dict[str, list[str]]
    data: Data = field(default_factory=Data)
    core: Core = field(default_factory=Core)
    objective: Objective = field(default_factory=Objective)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)
    score: Score = field(default_factory=Score)
    switches: Switches = field(default_factory=Switches)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # hyper-parameters of methods in this contest
    methods: list[str] = field(default_factory=list)  # what a sweep runs; empty means every file of methods/
    ranked: bool = True  # whether its records belong into leaderboards/
    custom: bool = False  # made with overrides: never written into leaderboards/
    source: str = ""  # what `load` was given, and the overrides: enough to load the same rules in another process
    overrides: list[str] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """Identity of the rules. Names, titles and the list of methods are not rules."""
        return digest(self.rules())

    def rules(self) -> dict[str, Any]:
        """All that could change a number, as plain values."""
        rules = dataclasses.asdict(self)
        about = ("name", "title", "methods", "ranked", "custom", "source", "overrides")
        rules["train"]["init"] = identity(self.train.init)
        return {key: rules[key] for key in rules if key not in about}

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

    def grids(self, train: str) -> list[tuple[int, int]]:
        """Tokens per axis at a training size and at every size that it is tested at."""
        return [self.grid(size) for size in [train, *self.cells[train]]]

    def largest_grid(self, train: str) -> int:
        """Tokens on the longest axis of any size that a training is tested at (or trained at)."""
        return max(map(max, self.grids(train)))

    def training(self, train: str) -> dict[str, Any]:
        """The part of the rules that a training at size `train` depends on."""
        parts = {part: dataclasses.asdict(getattr(self, part)) for part in ("data", "core", "objective", "train")}
        parts["train"]["init"] = identity(self.train.init)
        return {**parts, "size": train, "largest_grid": self.largest_grid(train)}

    def sampling(self) -> dict[str, Any]:
        """The part of the rules that sampling from a checkpoint depends on, besides the sizes."""
        return {"sample": dataclasses.asdict(self.sample), "switches": dataclasses.asdict(self.switches)}


def size_hw(size: str) -> tuple[int, int]:
    """(height, width) in pixels from "64x48"."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if not match:
        raise UserError(f"size '{size}' is not HEIGHTxWIDTH, such as 64x48")
    return int(match[1]), int(match[2])


def size_name(height: int, width: int) -> str:
    return f"{height}x{width}"


def ratio(train: str, test: str) -> float:
    """Test size over training size per axis, as the square root of the areas' ratio."""
    return math.sqrt(math.prod(size_hw(test)) / math.prod(size_hw(train)))


def identity(init: str) -> str:
    """What the rules say of the checkpoint that a training starts from.

    A file is known by its content, "sha256:<hash>", wherever it lies. A protocol that asks for a checkpoint holds such a hash, or
    a name while nobody has pinned it.
    """
    path = Path(init)
    if not init or not path.is_file():
        return init
    state = path.stat()
    return _content(str(path.resolve()), state.st_size, state.st_mtime_ns)


@functools.cache
def _content(path: str, size: int, changed: int) -> str:
    return f"sha256:{file_hash(path)}"


def names() -> list[str]:
    """The protocols there are: the files of benchmark/protocols/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Protocol:
    """Reads, merges and validates a protocol.

    Args:
        name: a file name in benchmark/protocols/ without its ending, or the path of a YAML file elsewhere.
        overrides: dot-list assignments such as "train.steps=200". Any of them makes the run a custom one.

    Raises:
        UserError: unknown protocol or key, a value of the wrong type, or rules that contradict each other.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise unknown("protocol", name, names())
    for assignment in overrides:
        _check_assignment(assignment)
    outside = path.parent.resolve() != FOLDER.resolve()
    try:
        schema = OmegaConf.structured(
            Protocol(path.stem, "", {}, custom=bool(overrides) or outside, source=name, overrides=list(overrides))
        )
        merged = OmegaConf.merge(schema, *_layers(path), OmegaConf.from_dotlist(list(overrides)))
        protocol = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f" with {' '.join(overrides)}" if overrides else ""
        raise UserError(f"protocol {path.stem}{where}: {reason}") from None
    validate(protocol)
    given = [assignment for assignment in overrides if assignment.startswith("train.init=")]
    if given and protocol.train.init and not Path(protocol.train.init).is_file():
        raise UserError(f"train.init: {protocol.train.init} is not there; give the path of a checkpoint")
    if given and len(given) == len(overrides) and not outside:
        # Where the very file lies that the rules ask for is no rule.
        protocol.custom = protocol.hash != load(name).hash
    return protocol


def _layers(path: Path) -> list[Any]:
    """A protocol's file, after that of the protocol which it names as its `base`."""
    from omegaconf import OmegaConf

    content = OmegaConf.load(path)
    base = content.pop("base", None)
    if base is None:
        return [content]
    if base not in names() or base == path.stem:
        raise unknown(f"base of {path.stem}", str(base), [name for name in names() if name != path.stem])
    return [*_layers(FOLDER / f"{base}.yaml"), content]


def _check_assignment(assignment: str) -> None:
    """Refuses an override whose key does not exist, and names the nearest that does."""
    key, equals, _ = assignment.partition("=")
    if not equals:
        raise UserError(f"'{assignment}' is not an override: write section.key=value, such as train.steps=200")
    section, _, rest = key.partition(".")
    if section in ("options", "cells") and rest:
        return
    sections = {item.name: item for item in dataclasses.fields(Protocol)}
    classes = {c.__name__.lower(): c for c in (Data, Core, Objective, Train, Sample, Score, Switches)}
    keys = [f"{name}.{item.name}" for name, cls in classes.items() for item in dataclasses.fields(cls)]
    keys += [name for name in sections if name in ("methods",)]
    if key not in keys:
        raise unknown("setting", key, keys)


def validate(protocol: Protocol) -> None:
    """Raises UserError where the rules contradict each other."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"{protocol.name}: {message}")

    for key, choices in CHOICES.items():
        section, name = key.split(".")
        value = getattr(getattr(protocol, section), name)
        if value not in choices:
            raise unknown(key, value, choices)
    need(bool(protocol.cells), "has no cells")
    need((protocol.data.representation == "pixels") == (protocol.data.factor == 1), "data.factor is 1 for pixels only")
    for train, tests in protocol.cells.items():
        need(len(set(tests)) == len(tests), f"a test size of {train} is listed twice")
        for size in [train, *tests]:
            protocol.grid(size)
    core = protocol.core
    for name in ("width", "depth", "heads", "patch", "channels", "classes"):
        need(getattr(core, name) >= 1, f"core.{name} must be at least 1")
    need(core.width % core.heads == 0, f"core.width {core.width} is not divisible by {core.heads} heads")
    head = core.width // core.heads
    need(head % 4 == 0, f"head width {head} is not divisible by 4: rotary positions need pairs on two axes")
    solvers = SOLVERS[protocol.objective.name]
    if protocol.sample.solver not in solvers:
        raise unknown(f"solver for the {protocol.objective.name} objective", protocol.sample.solver, solvers)
    shifted = protocol.switches.timestep_shift != "none"
    need(not shifted or protocol.objective.name == "flow", "switches.timestep_shift is for flow models only")
    need(protocol.objective.shift > 0, "objective.shift must be positive")
    need(protocol.objective.shift == 1 or protocol.objective.name == "flow", "objective.shift is for flow models only")
    need(0 <= protocol.objective.class_dropout < 1, "objective.class_dropout must be in [0, 1)")
    need(0 <= protocol.train.ema < 1, "train.ema must be in [0, 1)")
    for name, value in (("train.steps", protocol.train.steps), ("train.batch", protocol.train.batch),
                        ("sample.steps", protocol.sample.steps), ("sample.batch", protocol.sample.batch)):  # fmt: skip
        need(value >= 1, f"{name} must be at least 1")
    need(protocol.sample.count >= 2, "sample.count must be at least 2: a covariance needs two images")
    need(protocol.score.reference >= 2, "score.reference must be at least 2: a covariance needs two images")
    splits, count = protocol.score.splits, protocol.sample.count
    need(1 <= splits <= count, f"score.splits must be 1 to {count}: every split of the inception score needs an image")
    nearest = min(protocol.score.nearest, protocol.score.reference, count)
    need(nearest >= 4, "score.nearest, score.reference and sample.count must be at least 4: precision needs a third neighbour")
