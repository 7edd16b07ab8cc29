"""Run a model's own code at full size without computing it: for counting FLOPs and bytes exactly.

A *hollow* tensor has a full-size shape and dtype but one number of storage (a zero with all strides zero). A model
whose parameters are hollow costs no memory, and inside :class:`HollowExecution` every operation that touches a hollow
tensor only works out its result's shape (by PyTorch's meta kernels) and gives a hollow result. Unlike with meta or fake
tensors, everything small and real stays real: masks, indices, dropout draws, timesteps, lists, ``if`` statements. So
code whose shapes depend on data, like attention to the tokens of a mask, takes the very steps it takes in earnest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from consistory_ray.doctor.flops import count_flops

__all__ = ["HollowExecution", "count_flops", "hollow", "hollow_out", "is_hollow"]

aten = torch.ops.aten


def hollow(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros of this shape that occupies a single number."""
    return torch.zeros((), dtype=dtype).expand(shape)


def is_hollow(tensor: Tensor) -> bool:
    """Whether many elements share one number of storage."""
    return tensor.numel() > 1 and tensor.untyped_storage().nbytes() == tensor.element_size()


def hollow_out(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Replaces every parameter and buffer, on whatever device (``meta`` will do), by a hollow one on the CPU."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(hollow(parameter.shape, dtype), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, hollow(buffer.shape, dtype))
    return module


class HollowExecution(TorchDispatchMode):
    """While active, operations on hollow tensors give hollow results and cost next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat, spec = tree_flatten((args, kwargs))
        if func.is_view or not any(isinstance(a, Tensor) and is_hollow(a) for a in flat):
            return func(*args, **kwargs)
        if func._schema.is_mutable:  # writing into, or from, a hollow tensor changes no number that counts
            return args[0]
        if func is aten.index.Tensor:  # a result's shape may depend on a (real) mask
            args = (args[0], _as_integers(args[1]))
            flat, spec = tree_flatten((args, kwargs))
        key = (func, *((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else repr(a) for a in flat))
        if key not in self._results:
            self._results[key] = _shapes(func, flat, spec)
        shapes, out_spec = self._results[key]
        if any(isinstance(s, tuple) and not (s[1].is_floating_point or s[1].is_complex) for s in shapes):
            return func(*args, **kwargs)  # comparisons, argmin: of zeros, but real
        return tree_unflatten([hollow(*s) if isinstance(s, tuple) else s for s in shapes], out_spec)


def _as_integers(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Boolean masks among an index's tensors, as positions."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            positions.extend(index.nonzero(as_tuple=True))
        else:
            positions.append(index)
    return positions


def _shapes(func: Any, flat: list[Any], spec: Any) -> tuple[list[Any], Any]:
    """What an operation would return: (shape, dtype) for each tensor; found on the meta device."""

    def to_meta(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        return torch.device("meta") if isinstance(value, torch.device) else value

    if func is aten._local_scalar_dense.default:
        return [0.0], tree_flatten(0.0)[1]
    args, kwargs = tree_unflatten([to_meta(value) for value in flat], spec)
    results, out_spec = tree_flatten(func(*args, **kwargs))
    return [(tuple(r.shape), r.dtype) if isinstance(r, Tensor) else r for r in results], out_spec
