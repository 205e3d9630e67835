"""Estimated cost of a stage: FLOPs by numeric format, device-hours and bytes on disk.

Operations are counted as in model/flops.py. Hours are operations over the device's peak for their number format
times an efficiency, both stated with the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from benchmark.model.flops import OUTPUTS, Device, forward_flops, parameters, training_flops
from benchmark.plan.dataset import OVERHEAD
from benchmark.protocol import Protocol, Sample, size_hw
from benchmark.registry import detector_facts

# Stable Diffusion's autoencoder (83,653,863 parameters): convolutions per pixel, and one attention of width 512 in the middle of
# either half over (height / 8) x (width / 8) places. Counted from diffusers' AutoencoderKL; a test counts again.
ENCODE_PIXEL, DECODE_PIXEL, MIDDLE = 4_128_642, 9_461_056, 512
CHECKPOINT = 16  # bytes a weight: float32 raw, average, and AdamW's two moments
PICTURE = 2.0  # bytes a pixel of an image that is kept, as PNG: photographs at 256x256 take 1.8, at 512x512 1.5
KEPT = 2  # checkpoints of a training that stay; another one is being written beside them


@dataclass(frozen=True)
class Cost:
    """Operations by the number format that they run in, and bytes on disk."""

    bf16: float = 0.0
    tf32: float = 0.0  # the autoencoder's float32 convolutions, as torch runs them by default
    float32: float = 0.0  # detectors, and cores in float32
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = vars(self), vars(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})

    def __mul__(self, factor: float) -> Cost:
        return Cost(**{name: value * factor for name, value in vars(self).items()})

    @property
    def operations(self) -> float:
        return self.bf16 + self.tf32 + self.float32

    def hours(self, device: Device, efficiency: float) -> float:
        """Device-hours."""
        seconds = sum(getattr(self, name) / (getattr(device, name) * 1e12) for name in ("bf16", "tf32", "float32"))
        return seconds / efficiency / 3600


def evaluations(config: Sample) -> int:
    """Forwards of the core that one sampled image takes: Heun evaluates twice a step but the last, guidance doubles all."""
    steps = 2 * config.steps - 1 if config.solver == "heun" else config.steps
    return steps * (1 if config.guidance == 1 else 2)


def autoencoder_flops(pixel: float, height: int, width: int) -> float:
    """Operations of one half of Stable Diffusion's autoencoder on one image; `pixel` is ENCODE_PIXEL or DECODE_PIXEL."""
    return pixel * height * width + 4.0 * MIDDLE * (height // 8 * (width // 8)) ** 2


def training(protocol: Protocol, size: str, keep: bool = False) -> Cost:
    """The core's part of a training, forward and backward; what stays of it: averaged weights, and with `keep` checkpoints."""
    operations = training_flops(protocol, size) * protocol.train.batch * protocol.train.steps
    weights = parameters(protocol.core, OUTPUTS[protocol.objective.name])
    return Cost(**{protocol.train.precision: operations}, bytes=4.0 * weights + (checkpoints(protocol, KEPT) if keep else 0.0))


def checkpoints(protocol: Protocol, count: int = KEPT + 1) -> float:
    """Bytes of a training's checkpoints, at their most unless a `count` is given."""
    return float(count * CHECKPOINT * parameters(protocol.core, OUTPUTS[protocol.objective.name]))


def autoencoder(size: str, images: float) -> Cost:
    """Encoding pictures of a size with the autoencoder."""
    return Cost(tf32=images * autoencoder_flops(ENCODE_PIXEL, *size_hw(size)))


def latents(protocol: Protocol, size: str, images: int) -> Cost:
    """Pictures and their mirror images as latents: mean and deviation in float16."""
    height, width = protocol.latent_hw(size)
    stored = images * (2.0 * 2 * 2 * protocol.core.channels * height * width + OVERHEAD)
    return autoencoder(size, 2.0 * images) + Cost(bytes=stored)


def sampling(protocol: Protocol, test: str, kept: int) -> Cost:
    """Generating a cell: sampler, decoding, detector; its features, and the images that are kept."""
    config, name = protocol.sample, protocol.score.detector
    flops = forward_flops(protocol.core, OUTPUTS[protocol.objective.name], protocol.grid(test)) * evaluations(config)
    cost = Cost(**{config.precision: flops * config.count})
    if protocol.data.representation == "latents":
        cost += Cost(tf32=config.count * autoencoder_flops(DECODE_PIXEL, *size_hw(test)))
    facts = detector_facts(name)
    numbers = facts.numbers + min(size_hw(test)) // 2  # features and spectrum
    stays = float(facts.bytes) * config.count * numbers + PICTURE * kept * prod(size_hw(test))
    return cost + detecting(protocol, config.count) + Cost(bytes=stays)


def detecting(protocol: Protocol, images: int) -> Cost:
    """A detector's pass over some images."""
    return Cost(float32=images * detector_facts(protocol.score.detector).flops)


def reference(protocol: Protocol) -> Cost:
    """Reference statistics of one size: the detector's pass, and the features that are kept."""
    kept = protocol.score.kept * detector_facts(protocol.score.detector).numbers
    return detecting(protocol, protocol.score.reference) + Cost(bytes=4.0 * kept)


def show_bytes(count: float) -> str:
    """Bytes as "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count / 1000:.3g} PB"
