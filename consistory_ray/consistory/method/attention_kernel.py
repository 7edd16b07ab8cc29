"""Which kernel computes attention: every attention of the method goes through :func:`attend`.

PyTorch chooses a kernel from the inputs alone. On a CUDA device of the Hopper or Blackwell generation cuDNN's comes
first, which prepares a plan for every new shape (23 to 37 ms have been measured) and keeps it for ever. Attention to
anchors has a new number of keys at nearly every step, in each pass and at each level, so that plans would take longer
than the pictures. There are two ways out, and :func:`shared_lengths` chooses:

- ``exact``: those calls, and only those, ask for the flash kernel first, which prepares nothing;
- ``bucketed``: kept tokens are padded to one of a few numbers, and a mask leaves the padding out of the softmax. Shapes
  are few then, and PyTorch chooses among the kernels that take masks (flash does not).

Either choice changes how numbers are rounded, like another device does; neither is part of a picture's settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistory_ray.consistory.method.attention_packages import PACKAGES, attend_with
from consistory_ray.errors import InputError, Problem

AttentionKernel: TypeAlias = Literal["auto", "default", "flash", "efficient", "cudnn", "math", "flash3", "sage"]
"""``auto``: as PyTorch chooses, except for ragged calls on CUDA (see the module). ``default``: as PyTorch chooses.
``flash3``, ``sage``: of a package that has to be installed, for every call without a mask. The others: that kernel for
every call, and an error where it cannot be had."""

SharedLengths: TypeAlias = Literal["exact", "bucketed"]
"""How many keys attention to anchors has: see the module."""

VARIABLE = "CONSISTORY_RAY_ATTENTION_KERNEL"
"""Environment variable with the kernel of processes in which :func:`attention_kernel` is not used."""

LENGTHS_VARIABLE = "CONSISTORY_RAY_SHARED_LENGTHS"
"""The same for :func:`shared_lengths`."""

RAGGED_ON_CUDA = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""What ``auto`` tries for a ragged call on CUDA, in this order: none of them prepares anything for a shape."""

LEAST_LENGTH = 64
"""What padded numbers of tokens are multiples of."""

_NAMED: Mapping[str, SDPBackend] = MappingProxyType(
    {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
)
_chosen: ContextVar[AttentionKernel | None] = ContextVar("attention kernel", default=None)
_lengths: ContextVar[SharedLengths | None] = ContextVar("shared lengths", default=None)

C = TypeVar("C")


def attend(query: Tensor, key: Tensor, value: Tensor, *, ragged: bool, key_mask: Tensor | None = None) -> Tensor:
    """Multi-head attention.

    Args:
        query: [rows, heads, tokens, head channels].
        key, value: [rows, heads, key tokens, head channels].
        ragged: the number of key tokens differs from call to call, as that of kept anchor tokens does.
        key_mask: which keys there are, bool [key tokens], at least one, the others are padding; or what is added to
            each key's logits, of the dtype of ``query``, -inf for padding. None for all keys as they are.

    Returns:
        Like ``query``.

    Raises:
        InputError: the kernel that was chosen cannot be had for these inputs, or its name is unknown.
    """
    chosen = chosen_kernel()
    if chosen in PACKAGES:
        if key_mask is None:
            return attend_with(chosen, query, key, value)
        chosen = "default"
    mask = None if key_mask is None else key_mask[None, None, None]
    padded = key_mask is not None and key_mask.dtype == torch.bool
    backends = _backends(chosen, query.device, ragged and not padded)
    if backends is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    try:
        with sdpa_kernel(backends, set_priority=True):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    except RuntimeError as error:  # the words differ between devices
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        masked = " with padded keys" if key_mask is not None else ""
        fix = "use 'auto', or another dtype or device; PyTorch's warnings say what this kernel asks for"
        where = f"{chosen} for {str(query.dtype).removeprefix('torch.')} on {query.device.type}{masked}"
        raise InputError("the attention kernel cannot be used", [Problem("attention_kernel", where, fix)]) from error


def padded_length(kept: int) -> int:
    """How many tokens so many are padded to: four numbers from each power of two to the next, and none below 64."""
    step = max(LEAST_LENGTH, 1 << max(0, (kept - 1).bit_length() - 3))
    return max(1, -(-kept // step)) * step


def chosen_kernel() -> AttentionKernel:
    """The kernel in force: the innermost :func:`attention_kernel`, else the environment's, else ``auto``.

    Raises:
        InputError: the environment names none of them.
    """
    return _chosen.get() or _checked(VARIABLE, os.environ.get(VARIABLE) or "auto", AttentionKernel)


def chosen_lengths() -> SharedLengths:
    """The same of :func:`shared_lengths`; ``exact`` where nothing is said.

    Raises:
        InputError: the environment says something else.
    """
    return _lengths.get() or _checked(LENGTHS_VARIABLE, os.environ.get(LENGTHS_VARIABLE) or "exact", SharedLengths)


def check_choices() -> None:
    """Refuse an environment that names what there is not, or a kernel whose package is not there.

    Raises:
        InputError: saying which.
    """
    chosen_lengths()
    if (chosen := chosen_kernel()) in PACKAGES:
        PACKAGES[chosen].function()


@contextmanager
def attention_kernel(kernel: AttentionKernel) -> Iterator[None]:
    """Use a kernel within the ``with`` block, on this thread.

    Raises:
        InputError: there is no such kernel.
    """
    with _set(_chosen, _checked("attention_kernel", kernel, AttentionKernel)):
        yield


@contextmanager
def shared_lengths(lengths: SharedLengths) -> Iterator[None]:
    """Attend to anchors' tokens in exact or padded numbers within the ``with`` block, on this thread.

    Raises:
        InputError: it is neither.
    """
    with _set(_lengths, _checked("shared_lengths", lengths, SharedLengths)):
        yield


@contextmanager
def _set(variable: ContextVar[C | None], value: C) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _checked(field: str, name: str, kind: Any) -> Any:
    if name in get_args(kind):
        return name
    what = "attention kernel" if kind is AttentionKernel else "choice of lengths"
    fix = f"use one of {', '.join(get_args(kind))}"
    raise InputError(f"there is no such {what}", [Problem(field, repr(name), fix)])


def _backends(kernel: AttentionKernel, device: torch.device, ragged: bool) -> list[SDPBackend] | None:
    """What PyTorch is restricted to, in this order; None for its own choice."""
    if kernel == "auto":
        return list(RAGGED_ON_CUDA) if ragged and device.type == "cuda" else None
    return None if kernel == "default" else [_NAMED[kernel]]
