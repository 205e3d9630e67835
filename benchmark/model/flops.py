"""FLOPs and parameters of the core, counted from its shape, and peak rates of devices; nothing is run.

Operations are counted as torch's flop counter counts them: two for a multiply-add of matrix products, convolutions and
attention; norms, activations and samplers are left out.

Legend: T tokens, D width, (h, w) token grid; y before x.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmark.files import unknown
from benchmark.protocol import Core, Protocol

OUTPUTS = {"flow": 1, "ddpm": 2}  # predictions a channel: the ddpm objective learns a variance too
BACKWARD = 2  # the gradient of a product is two products of its size


def forward_flops(core: Core, outputs: int, grid_hw: tuple[int, int]) -> float:
    """Operations of one forward of the core for one image.

    Per block: 6 T D^2 for q, k, v, 2 T D^2 for their projection, 4 T^2 D for attention (a mask saves nothing), 4 r T D^2 for an
    MLP of ratio r, and 12 D^2 for the modulation. What a method adds to the core is not counted.

    Args:
        outputs: predictions a channel; 2 where the variance is learned.
        grid_hw: tokens per axis.
    """
    tokens, width, pixels = grid_hw[0] * grid_hw[1], core.width, core.patch**2 * core.channels
    hidden = int(width * core.mlp_ratio)
    block = tokens * width * (8 * width + 4 * hidden) + 4 * tokens**2 * width + 12 * width**2
    ends = 2 * tokens * width * pixels * (1 + outputs) + 4 * width**2
    time = 2 * 256 * width + 2 * width**2
    return float(core.depth * block + ends + time)


def parameters(core: Core, outputs: int) -> int:
    """Weights of the core, without what a method adds."""
    width, pixels = core.width, core.patch**2 * core.channels
    hidden = int(width * core.mlp_ratio)
    block = 4 * width**2 + 2 * width * hidden + 6 * width**2 + (4 + 1 + 6) * width + hidden
    patches = pixels * width + width
    time = 256 * width + width + width**2 + width
    last = 2 * width**2 + 2 * width + pixels * outputs * (width + 1)
    return core.depth * block + patches + time + (core.classes + 1) * width + last


def training_flops(protocol: Protocol, train: str) -> float:
    """Operations of the core for one image of a training: forward and backward."""
    return (1 + BACKWARD) * forward_flops(protocol.core, OUTPUTS[protocol.objective.name], protocol.grid(train))


# --- Devices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Dense peaks in TFLOP/s, without sparsity, from the maker's data sheet; and the share of them that is assumed."""

    title: str
    bf16: float
    tf32: float
    float32: float
    efficiency: float = 0.4


DEVICES = {
    "a100": Device("NVIDIA A100 SXM", 312, 156, 19.5),
    "h100": Device("NVIDIA H100 SXM", 989, 495, 67),
    "h200": Device("NVIDIA H200 SXM", 989, 495, 67),
    "b200": Device("NVIDIA B200", 2250, 1100, 75),
    "l40s": Device("NVIDIA L40S", 362, 183, 91.6),
    "rtx4090": Device("NVIDIA RTX 4090", 165, 82.6, 82.6),
    # Matrix products of 2048 x 2048 as measured on two cores with AVX512-BF16; other processors differ widely.
    "cpu": Device("two CPU cores with AVX512-BF16", 0.862, 0.203, 0.203, 0.3),
}  # fmt: skip


def device(name: str) -> Device:
    """A device by name; a UserError lists the choices."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


def recognised(name: str) -> Device | None:
    """The device that torch calls `name`, such as "NVIDIA H100 80GB HBM3"; None where it is not listed, or a slower variant."""
    words = name.lower().replace(" ", "")
    if re.search(r"pcie|nvl|laptop|4090d|g[bh]200", words):
        return None
    return next((found for key, found in DEVICES.items() if key != "cpu" and key in words), None)
