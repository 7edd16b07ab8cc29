"""Which kernel computes attention: every attention of the method goes through :func:`attend`.

PyTorch chooses a kernel from the inputs alone. On a CUDA device of the Hopper or Blackwell generation cuDNN's comes
first, which prepares a plan for every new shape (23 to 37 ms have been measured) and keeps it for ever. Attention to
anchors has a new number of keys at nearly every step, in each pass and at each level, so that plans would take longer
than the pictures; those calls, and only those, ask for the flash kernel first. The choice changes how numbers are
rounded, like another device does; it is no part of a picture's settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistory_ray.errors import InputError, Problem

AttentionKernel: TypeAlias = Literal["auto", "default", "flash", "efficient", "cudnn", "math"]
"""``auto``: as PyTorch chooses, except for ragged calls on CUDA (see the module). ``default``: as PyTorch chooses.
The others: that kernel for every call, and an error where it cannot be had."""

VARIABLE = "CONSISTORY_RAY_ATTENTION_KERNEL"
"""Environment variable with the kernel of processes in which :func:`attention_kernel` is not used."""

RAGGED_ON_CUDA = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""What ``auto`` tries for a ragged call on CUDA, in this order: none of them prepares anything for a shape."""

_NAMED: Mapping[str, SDPBackend] = MappingProxyType(
    {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
)
_chosen: ContextVar[AttentionKernel | None] = ContextVar("attention kernel", default=None)


def attend(query: Tensor, key: Tensor, value: Tensor, *, ragged: bool) -> Tensor:
    """Multi-head attention without a mask.

    Args:
        query: [rows, heads, tokens, head channels].
        key, value: [rows, heads, key tokens, head channels].
        ragged: the number of key tokens differs from call to call, as that of kept anchor tokens does.

    Returns:
        Like ``query``.

    Raises:
        InputError: the kernel that was chosen cannot be had for these inputs, or its name is unknown.
    """
    chosen = chosen_kernel()
    backends = _backends(chosen, query.device, ragged)
    if backends is None:
        return F.scaled_dot_product_attention(query, key, value)
    try:
        with sdpa_kernel(backends, set_priority=True):
            return F.scaled_dot_product_attention(query, key, value)
    except RuntimeError as error:  # the words differ between devices
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        fix = "use 'auto', or another dtype or device; PyTorch's warnings say what this kernel asks for"
        where = f"{chosen} for {str(query.dtype).removeprefix('torch.')} on {query.device.type}"
        raise InputError("the attention kernel cannot be used", [Problem("attention_kernel", where, fix)]) from error


def chosen_kernel() -> AttentionKernel:
    """The kernel in force: the innermost :func:`attention_kernel`, else the environment's, else ``auto``.

    Raises:
        InputError: the environment names none of them.
    """
    return _chosen.get() or _checked(VARIABLE, os.environ.get(VARIABLE) or "auto")


@contextmanager
def attention_kernel(kernel: AttentionKernel) -> Iterator[None]:
    """Use a kernel within the ``with`` block, on this thread.

    Raises:
        InputError: there is no such kernel.
    """
    token = _chosen.set(_checked("attention_kernel", kernel))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(field: str, name: str) -> AttentionKernel:
    for known in get_args(AttentionKernel):
        if name == known:
            kernel: AttentionKernel = known
            return kernel
    names = ", ".join(get_args(AttentionKernel))
    raise InputError("there is no such attention kernel", [Problem(field, repr(name), f"use one of {names}")])


def _backends(kernel: AttentionKernel, device: torch.device, ragged: bool) -> list[SDPBackend] | None:
    """What PyTorch is restricted to, in this order; None for its own choice."""
    if kernel == "auto":
        return list(RAGGED_ON_CUDA) if ragged and device.type == "cuda" else None
    return None if kernel == "default" else [_NAMED[kernel]]
