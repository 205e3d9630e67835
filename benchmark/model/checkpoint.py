"""Weights in the published DiT layout, in and out: a state dict, or {"model": ..., "ema": ...}; .pt or .safetensors.

The layout is the core's own naming plus `pos_embed` [1, T, D], a table that is computed and not learned: it is left out when
weights come in, and computed when they go out. Nothing is ever unpickled but tensors (`weights_only=True`).
"""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmark import progress
from benchmark.files import UserError, atomic, listed
from benchmark.model.dit import Core
from benchmark.model.method import Method

TABLE = "pos_embed"
OWN = "core."  # begins the core's keys in the weights that our trainings write; what a method adds has others


class Size(NamedTuple):
    depth: int
    width: int
    heads: int


# Peebles and Xie 2023, table 1; each with patch 2, 4 or 8.
SIZES = {
    "S":  Size(12,  384,  6),
    "B":  Size(12,  768, 12),
    "L":  Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}  # fmt: skip


def load_core(path: Path | str) -> dict[str, Tensor]:
    """The weights of a core from a file in the DiT layout: averaged ones where the file has both kinds.

    Args:
        path: .safetensors, or anything `torch.save` wrote; also the weights of one of our trainings, without what its method
            added to the core.

    Returns:
        tensors on the CPU by name, without `pos_embed`.

    Raises:
        UserError: the file is not there, broken, holds more than tensors, or is not a state dict.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist; give one in the DiT layout as train.init=PATH")
    if path.suffix == ".safetensors":
        try:
            state = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(f"checkpoint {path} is not a complete safetensors file ({_line(error)})") from None
    else:
        state = _unpickled(path)
        # Training checkpoints of facebookresearch/DiT: the averaged weights are the ones to use.
        for name in ("ema", "model"):
            if isinstance(state, dict) and isinstance(state.get(name), dict):
                state = state[name]
                break
    if isinstance(state, dict) and not all(isinstance(name, str) for name in state):
        raise UserError(f"checkpoint {path} has keys that are not strings")
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint {path} is neither a state dict nor {{model, ema}} holding one")
    own = {name.removeprefix(OWN): value for name, value in state.items() if name.startswith(OWN)}
    if own and (others := [name for name in state if not name.startswith(OWN)]):
        progress.say(f"{path}: left out {listed(others)}, which its method adds to the core")
    return own or {name: value for name, value in state.items() if name != TABLE}


def _unpickled(path: Path) -> object:
    try:
        # Those training checkpoints also hold their command line's arguments, plain data in this class.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            reason = "holds code or objects, not only tensors, and is refused"
        else:
            reason = "is not a complete PyTorch file"
        raise UserError(f"checkpoint {path} {reason} ({_line(error)})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"checkpoint {path} is not a complete PyTorch file ({_line(error)})") from None


def _line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check(state: dict[str, Tensor], core: Core, source: Path | str) -> None:
    """Raises UserError where `state` is not exactly the weights of `core`, and names keys that are not as they should be."""
    expected = core.state_dict()
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    found = (
        ("missing", [name for name in expected if name not in state]),
        ("not of this core", [name for name in state if name not in expected]),
        ("of another shape", wrong),
    )
    text = "; ".join(f"{kind}: {listed(names)}" for kind, names in found if names)
    if text:
        raise UserError(f"checkpoint {source} does not fit the core: {text}")


def initialise(method: Method, path: Path | str) -> None:
    """Starts a method's core from a checkpoint in the DiT layout; what the method adds to the core keeps its own start.

    Raises:
        UserError: as `load_core`, or the weights do not fit the core.
    """
    state = load_core(path)
    if method.protocol.objective.convention != "dit":
        state = interpolant(state, method.core, path)
    check(state, method.core, path)
    method.core.load_state_dict(state)


def interpolant(state: dict[str, Tensor], core: Core, source: Path | str) -> dict[str, Tensor]:
    """The weights of a core in those of SiT (willisma/SiT) or SiT-REPA (sihyun-yu/REPA), both with DiT's names.

    SiT has twice the outputs, of which its own forward drops the second half; REPA has projectors, which only its training
    needs, and its older files call the blocks after these `decoder_blocks`. What is left out is named.
    """
    extra = [name for name in state if name.startswith("projectors.")]
    if extra:
        progress.say(f"{source}: left out {len(extra)} tensors that only REPA's training needs ({', '.join(extra)})")
    first = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    result = {}
    for name, value in state.items():
        if name.startswith("decoder_blocks."):
            _, number, rest = name.split(".", 2)
            name = f"blocks.{first + int(number)}.{rest}"
        if name not in extra:
            result[name] = value
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        outputs = core.patch**2 * core.out_channels
        if name in result and len(result[name]) == 2 * outputs:  # of a token: (row, column, channel)
            result[name] = result[name].unflatten(0, (core.patch**2, -1))[:, : core.out_channels].flatten(0, 1).contiguous()
            progress.say(f"{source}: left out the second half of {name}, which SiT does not use")
    return result


def export(method: Method, path: Path | str) -> None:
    """Writes a method's core in the DiT layout, by the ending of `path` as .safetensors or for `torch.load`.

    `pos_embed` is the table that the method adds at its training grid, or zeros where it adds none: rotary positions and masks
    have no place in this layout, and whoever loads the file has to apply them.

    Raises:
        UserError: the method has weights besides the core's, other than that table.
    """
    others = [name for name, _ in method.named_parameters() if not name.startswith(OWN)]
    beyond = [name for name in others if name not in method.grid_sized]
    if beyond:
        raise UserError(f"{method.title} has weights that do not exist in the DiT layout: {listed(beyond)}")
    path = Path(path)
    with torch.no_grad():
        add = method.encode(method.train_grid).add
        h, w = method.train_grid
        table = torch.zeros(h * w, method.protocol.core.width) if add is None else add.float().cpu()
    state = {TABLE: table[None].contiguous()}
    state |= {name: value.detach().cpu().contiguous() for name, value in method.core.state_dict().items()}
    with atomic(path) as draft:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(state, draft)
        else:
            torch.save(state, draft)
