"""A CUDA device that there is not: tensors that say they lie on it, with their numbers on the processor.

What CUDA refuses is refused here: an operation on tensors of two devices, except for numbers without dimensions and indices that
lie on the processor, and a generator of the processor for a tensor on the device. To Python they are on cuda:0; to autograd on
the meta device, which has no streams to look for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
PINNING = {aten.is_pinned.default, aten._pin_memory.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class OnDevice(torch.Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: torch.Tensor
    device = CUDA
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, held: torch.Tensor) -> OnDevice:
        place = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": "meta"}
        found = torch.Tensor._make_wrapper_subclass(cls, held.shape, **place)
        found.held = held
        return found

    def __repr__(self) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `PretendedCuda`")


class PretendedCuda(TorchDispatchMode):
    """Within it, cuda:0 is there."""

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # under such a mode torch looks for no GPU

    def __enter__(self) -> PretendedCuda:
        self.lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes its numbers here and moves them
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.lifts)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [leaf for leaf in given if isinstance(leaf, OnDevice)]
        free = args[1] if func in INDEXING and isinstance(args[0], OnDevice) else []  # indices may lie on the processor
        if here and func not in MOVES:
            for leaf in given:
                if not isinstance(leaf, OnDevice) and leaf.dim() and not any(leaf is index for index in free):
                    raise RuntimeError(f"{func} of tensors on cuda:0 and one {tuple(leaf.shape)} on the processor")
        if func in PINNING:  # page-locked memory needs a GPU: here the processor's serves, for what may be there
            if here:
                raise RuntimeError(f"{func}: only tensors of the processor can be page-locked")
            return False if func is aten.is_pinned.default else args[0].clone()
        asked = kwargs.get("device")
        on_device = bool(here) if asked is None else asked.type != "cpu"
        generator = kwargs.get("generator")
        if on_device and generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"{func} on cuda:0 with a generator of the processor")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func is aten.copy_.default:
            return args[0]
        known = {id(leaf.held): leaf for leaf in here}  # operations in place return what they were given

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return known[id(value)] if id(value) in known else OnDevice(value)

        return tree_map(wrapped, out) if on_device else out


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value
