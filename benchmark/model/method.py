"""Method: core + objective as a LightningModule. A method is a subclass that implements `encode`.

A file in methods/ holds one or a few such classes; the contract every one of them keeps is tests/methods/test_contract.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from benchmark.files import UserError, listed, shown, unknown
from benchmark.model import diffusion
from benchmark.model.dit import Core
from benchmark.model.draws import Draws, image_generator
from benchmark.model.encoding import Encoding, attention_scale, fault
from benchmark.model.optimizers import MuonAdamW
from benchmark.model.precision import full_precision
from benchmark.protocol import Protocol, size_hw
from benchmark.streams import WEIGHTS, labels, mixed_seed

KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}  # of options, in messages
PLAIN = (float, int, bool, str)


class Method(LightningModule):
    """A positional encoding on the shared core.

    Class attributes that a method sets:
        title: the name in tables.
        note: what a reader of its row must know, such as "reimplemented from the abstract".
        paper: where it was published: an arXiv number such as "2309.00071", or a URL.
        year: of that publication; of an arXiv number, the year in it.
        revision: raised when the meaning of its numbers changes (benchmark/revision.py); records of lower ones are stale.
        augments: the name of the option that turns on an augmentation of pictures in training; "" for none.
        trains_as: the name of the method whose checkpoint it uses; None is its own. Such a method is training-free, and
            equals the other one exactly at the training grid.
        timed: whether `encode` looks at the noise level in sampling.
        learns_positions: whether `encode` uses trained parameters, so that what it gave before a step is stale after it.
        grid_sized: names of parameters that the training grid sizes, because they are what the method learns.
        Options: a dataclass of hyper-parameters with defaults.

    Module slots, made in `build` of the method where it has them:
        stem: a module [B, D, h, w] -> same, after patchify; it is also given `Encoding.stem` as keyword arguments.
        conditioner: a module [B, 6] (the batch's `crop`) -> [B, D], added to the timestep and class embedding.

    Args:
        protocol: what it is trained and tested under.
        train: the training size in pixels, such as "32x32".
        seed: of initialisation and training.
        options: values for `Options`; unknown names are an error.
    """

    title: ClassVar[str] = ""
    note: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    revision: ClassVar[int] = 1
    augments: ClassVar[str] = ""
    trains_as: ClassVar[str | None] = None
    timed: ClassVar[bool] = False
    learns_positions: ClassVar[bool] = False
    grid_sized: ClassVar[tuple[str, ...]] = ()

    @dataclasses.dataclass(frozen=True)
    class Options:
        pass

    stem: nn.Module | None
    conditioner: nn.Module | None
    # Where pictures become latents on the way (autoencoder.py).
    to_latents: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __init__(self, protocol: Protocol, train: str, seed: int = 0, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.protocol, self.train_size, self.seed = protocol, train, seed
        self.options = self.make_options(options or {})
        self.train_grid = protocol.grid(train)
        self.largest_grid, self.most_tokens = protocol.largest(train)
        self.objective = diffusion.objective(protocol.objective)
        core = dataclasses.asdict(protocol.core)
        self.rope_base = core.pop("rope_base")
        self._encodings: dict[tuple, Encoding] = {}
        self._kept: dict[tuple, Any] = {}
        # Not class attributes: those would hide the modules, which torch finds only after them.
        self.stem = self.conditioner = None
        # Weights are a function of the seed, and building them leaves the caller's random state alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(WEIGHTS, seed))
            self.core = Core(**core, out_channels=core["channels"] * self.objective.outputs)
            self.build()

    @classmethod
    def make_options(cls, options: Mapping[str, Any]) -> Any:
        """The method's hyper-parameters: defaults, with `options` on top."""
        fields = {field.name: field for field in dataclasses.fields(cls.Options)}
        for name, value in options.items():
            if name not in fields:
                raise unknown(f"option of {cls.title or cls.__name__}", name, fields)
            default = fields[name].default
            # OmegaConf would convert: the text "8" to a number, and 1 to true.
            plain = isinstance(default, PLAIN) and fields[name].type in (*PLAIN, *KINDS)
            if plain and any(isinstance(value, kind) != isinstance(default, kind) for kind in (str, bool)):
                raise cls._wrong(name, value)
        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls.Options), dict(options)))
        except OmegaConfBaseException as error:
            key = str(error.full_key or "")
            if key not in fields:
                raise UserError(f"{cls.title}: {str(error).splitlines()[0]}") from None
            raise cls._wrong(key, options[key]) from None

    @classmethod
    def _wrong(cls, name: str, value: Any) -> UserError:
        """The error for an option's value that is not of its type."""
        kind = next(field.type for field in dataclasses.fields(cls.Options) if field.name == name)
        wanted = getattr(kind, "__name__", str(kind))  # a text where the file postpones annotations
        where = f"options.{cls.__module__.rpartition('.')[2]}.{name}"
        return UserError(f"{where} must be {KINDS.get(wanted, wanted)}, not {shown(value)}")

    @classmethod
    def augmentation_of(cls, options: Any) -> tuple[str, dict[str, Any]]:
        """The reader's augmentation in training under some options: its name and its own options (benchmark/data/batches.py)."""
        return "center_crop", {}

    def build(self) -> None:
        """Makes what the method adds to the core: slots, learned tables. Called once, under the run's seed."""

    def encode(self, grid_hw: tuple[int, int], *, time: float | None = None, draws: Draws | None = None) -> Encoding:
        """Where the tokens of a grid are.

        Args:
            grid_hw: tokens per axis.
            time: in sampling, the noise level (1 is noise); None in training.
            draws: in training, the step's random numbers; None in sampling, which is deterministic.

        Returns:
            the Encoding, on `self.device`.
        """
        raise NotImplementedError

    @property
    def augmentation(self) -> tuple[str, dict[str, Any]]:
        """`augmentation_of` this method's options."""
        return self.augmentation_of(self.options)

    @property
    def file(self) -> str:
        """The method's file, for messages."""
        return f"methods/{type(self).__module__.rpartition('.')[2]}.py"

    @property
    def head_width(self) -> int:
        """K, the channels of one attention head; a rotary axis turns half of them."""
        return self.protocol.core.width // self.protocol.core.heads

    @property
    def scaled_by_protocol(self) -> bool:
        """Whether the protocol scales the logits of every method; then no method applies a temperature of its own."""
        return self.protocol.switches.attention_scale != "none"

    def encoding(self, grid_hw: tuple[int, int], time: float | None = None) -> Encoding:
        """`encode` for sampling, made once a grid (and noise level), with the protocol's attention scale."""
        key = (grid_hw, time if self.timed else None, self.device)
        if self.learns_positions or key not in self._encodings:
            if self.timed or self.learns_positions:
                self._encodings.clear()
            with full_precision(self.device):
                encoding = self.encode(grid_hw, time=time if self.timed else None)
            self.once("checked sampling", grid_hw, lambda: self.check(encoding, grid_hw))  # not at every noise level
            tokens, trained = (h * w for h, w in (grid_hw, self.train_grid))
            scale = attention_scale(self.protocol.switches.attention_scale, tokens, trained)
            encoding = dataclasses.replace(encoding, logit_scale=encoding.logit_scale * scale)
            self._encodings[key] = encoding
        return self._encodings[key]

    def check(self, encoding: Any, grid_hw: tuple[int, int], batch: int = 0) -> None:
        """Checks an encoding, once a grid and before anything is computed with it.

        Some wrong shapes would be broadcast without an error, and NaN would look like a training that diverged.

        Raises:
            UserError: a field has another type or shape than it must have, or holds NaN or infinity; gives field and grid.
        """
        core = self.protocol.core
        if wrong_shape := fault(encoding, core.depth, core.heads, grid_hw[0] * grid_hw[1], core.width, batch):
            raise UserError(f"{self.file}: on a grid of {grid_hw[0]} x {grid_hw[1]} tokens, {wrong_shape}")
        pairs = encoding.rotary if isinstance(encoding.rotary, list) else [encoding.rotary or ()]
        biases: Any = encoding.bias or ()  # of a list each tensor once; a sequence may make them when they are asked for
        fields = {
            "add": [encoding.add],
            "rotary": [table for pair in pairs for table in pair],
            "bias": {id(bias): bias for bias in biases}.values() if isinstance(biases, list) else biases,
        }
        wrong = [name for name, tables in fields.items() if not all(map(is_finite, tables))]
        wrong += [] if math.isfinite(encoding.logit_scale) else ["logit_scale"]
        if wrong:
            learned = ", unless its training diverged" if self.learns_positions else ""
            raise UserError(
                f"{self.file}: the encoding of {grid_hw[0]} x {grid_hw[1]} tokens contains NaN or infinity "
                f"({', '.join(wrong)}); correct the method{learned}"
            )

    def once(self, name: str, grid_hw: tuple[int, int], make: Callable[[], Any]) -> Any:
        """What `make` returns, made once a grid and device: masks and biases, which every step of a training needs again."""
        key = (name, grid_hw, self.device)
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def predict(self, x: Tensor, time: Tensor, label: Tensor, encoding: Encoding, crop: Tensor | None) -> Tensor:
        """The core's output [B, C', H, W] for x [B, C, H, W], time [B] on 0 .. 1000, label [B], crop [B, 6]."""
        condition = self.conditioner(crop) if self.conditioner is not None else None
        output = self.core(x, self.objective.core_time(time), label, encoding, self.stem, condition)
        return self.objective.prediction(output)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Encodes pictures, where latents are trained on and were not written beforehand."""
        return batch if self.to_latents is None else self.to_latents(batch)

    def training_step(self, batch: dict[str, Any], batch_index: int = 0) -> Tensor:
        """`loss`; the callback Watch logs it."""
        return self.loss(batch)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The objective's loss on a batch of the reader (benchmark/data/batches.py). It needs no trainer."""
        data, label = batch["image"], batch["label"]
        draws = Draws(self.seed, batch["step"], batch["rows"], len(data), data.device)
        if "std" in batch:  # latents: the autoencoder's posterior is sampled anew at every step
            data = data + batch["std"] * draws.normal(*data.shape[1:])
        dropped = draws.uniform() < self.protocol.objective.class_dropout
        label = torch.where(dropped, self.protocol.core.classes, label)
        uniform, noise = draws.uniform(), draws.normal(*data.shape[1:])
        grid_hw = (data.shape[-2] // self.core.patch, data.shape[-1] // self.core.patch)
        with full_precision(self.device):
            encoding = self.encode(grid_hw, draws=draws)
        self.once("checked", grid_hw, lambda: self.check(encoding, grid_hw, len(data)))

        def predict(x: Tensor, time: Tensor) -> Tensor:
            return self.predict(x, time, label, encoding, batch["crop"])

        return self.objective.loss(predict, data, uniform, noise)

    @property
    def learning_rate(self) -> float:
        """AdamW's, which a protocol may state for this trained method alone; Muon's follows it."""
        config = self.protocol.train
        return config.lr_of.get(type(self).__module__.rpartition(".")[2], config.lr)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; or, where the protocol says muon, Muon for the matrices of attention and MLP and AdamW for the rest.

        The modulation stays with AdamW: its matrices start at zero, and a step of Muon has the same length however small the
        gradient is. A method with a learning rate of its own (`lr_of`) has Muon's multiplied by the same factor.
        """
        config = self.protocol.train
        options = {"betas": tuple(config.betas), "weight_decay": config.weight_decay, "fused": True}
        if config.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, **options)
        matrices = [
            parameter
            for block in self.core.blocks
            for part in (block.attn, block.mlp)
            for parameter in part.parameters()
            if parameter.ndim == 2
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.parameters() if id(parameter) not in chosen]
        muon_lr = config.muon_lr * (self.learning_rate / config.lr)
        return MuonAdamW(matrices, others, lr=self.learning_rate, muon_lr=muon_lr, **options)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer with linear warm-up and, where the protocol says so, a linear decay to zero at the end."""
        config = self.protocol.train
        optimizer = self.optimizer()

        def factor(step: int) -> float:
            up = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
            down = min(1.0, (config.steps - step) / config.decay) if config.decay else 1.0
            return up * down

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clips the gradient's norm. bfloat16 has no loss scale, which is why Lightning would not clip for a fused optimizer."""
        if self.protocol.train.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.protocol.train.clip)

    def sampling_times(self, grid_hw: tuple[int, int]) -> list[float]:
        """The noise levels at which the protocol's sampler asks for an encoding of a grid."""
        seen: list[float] = []

        def predict(x: Tensor, time: Tensor) -> Tensor:
            seen.append(self.objective.noise_level(float(time[0])))
            return torch.zeros(len(x), x.shape[1] * self.objective.outputs, *x.shape[2:])

        self.objective.sample(
            predict, torch.zeros(1, 1, 1, 1), self.protocol.sample, self.sampling_shift(grid_hw), [torch.Generator()]
        )
        return seen

    def sampling_shift(self, grid_hw: tuple[int, int]) -> float:
        """The protocol's shift of sampling times at a grid."""
        if self.protocol.switches.timestep_shift == "none":
            return 1.0
        return (grid_hw[0] * grid_hw[1] / (self.train_grid[0] * self.train_grid[1])) ** 0.5

    def predictor(self, size: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The core at a test size: (x [B, C, H, W], one time [B] on 0 .. 1000 for all, label [B]) -> output [B, C', H, W].

        The conditioner is told that nothing was cropped.
        """
        grid_hw = self.protocol.grid(size)
        target = torch.tensor([*size_hw(size), 0, 0, *size_hw(size)], dtype=torch.float32, device=self.device)

        def predict(x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            encoding = self.encoding(grid_hw, self.objective.noise_level(float(time[0])) if self.timed else None)
            return self.predict(x, time, label, encoding, target.expand(len(x), 6))

        return predict

    @torch.no_grad()
    def generate(self, size: str, seed: int, indices: Sequence[int], progress: Callable[[], None] = lambda: None) -> Tensor:
        """Generates the images `indices` of a cell.

        The label and the noise of image i depend on (seed, i) alone; the protocol says how labels are chosen.

        Args:
            size: in pixels, such as "64x48".
            seed: of the cell.
            indices: image numbers, one forward batch.
            progress: called after every step of the sampler.

        Returns:
            float32 [B, C, H, W] on `self.device`: pixels in about [-1, 1], or latents.
        """
        config, core = self.protocol.sample, self.protocol.core
        height, width = self.protocol.latent_hw(size)
        generators = [image_generator(seed, index) for index in indices]
        noise = torch.stack([torch.randn(core.channels, height, width, generator=g) for g in generators]).to(self.device)
        label = torch.from_numpy(labels(config.labels, seed, indices, core.classes)).to(self.device)
        grid_hw = self.protocol.grid(size)
        steered = diffusion.guided(self.predictor(size), label, core.classes, config.guidance, config.guidance_channels)
        return self.objective.sample(steered, noise, config, self.sampling_shift(grid_hw), generators, progress)


def refuse_unused(options: Any, why: str, *names: str) -> None:
    """Raises UserError where options have no effect and yet differ from their defaults: they would be part of a training's key.

    Args:
        options: an instance of a method's Options.
        why: such as "with recipe=scratch".
        names: of those without effect.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    if changed := [name for name in names if getattr(options, name) != defaults[name]]:
        method = type(options).__qualname__.partition(".")[0]
        raise UserError(f"{method}: {listed(changed)} {'has' if len(changed) == 1 else 'have'} no effect {why}; leave it out")


def is_finite(tensor: Tensor | None) -> bool:
    """Whether a tensor holds neither NaN nor infinity; smallest and largest value tell, without a second tensor of its size."""
    if tensor is None or tensor.device.type == "meta":
        return True
    return math.isfinite(sum(end.item() for end in torch.aminmax(tensor.detach())))
