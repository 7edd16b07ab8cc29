"""Which kernels compute attention here: small calls of the method's own, one for each choice there is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from consistory_ray.consistory.method.attention_kernel import AttentionKernel, attend, attention_kernel, chosen_kernel
from consistory_ray.doctor.diagnosis import KernelCheck
from consistory_ray.doctor.meters import seconds_for
from consistory_ray.errors import InputError

ROWS, HEADS, TOKENS, CHANNELS = 2, 20, 1024, 64
"""Of SDXL's coarse level at 1024 px, with both halves of the guidance."""
CPU_HEADS, CPU_TOKENS = 2, 256
KEPT = 0.325
"""Tokens of anchors that a ragged call sees besides, over a picture's own: their number is no multiple of anything."""
_REPEATS = 3
_REASON = 160


class DispatchedKernels(TorchDispatchMode):
    """Writes down which fused attention kernels run; what is made of matrix products is not among them.

    Attributes:
        kernels: by PyTorch's names, ``flash``, ``efficient`` or ``cudnn``, one a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if "scaled_dot_product" in name:
            self.kernels.append(
                name.split("_scaled_dot_product_")[-1].removesuffix("_for_cpu").removesuffix("_attention")
            )
        return func(*args, **(kwargs or {}))


def examined_kernels(
    device: torch.device, dtype: torch.dtype, choices: Sequence[AttentionKernel] = get_args(AttentionKernel)
) -> tuple[KernelCheck, ...]:
    """Let every choice compute a plain call and a ragged one; ``auto`` is what the environment chooses."""
    with torch.no_grad():
        return tuple(_examined(call, choice, device, dtype) for call in ("plain", "ragged") for choice in choices)


def _examined(call: str, choice: AttentionKernel, device: torch.device, dtype: torch.dtype) -> KernelCheck:
    ragged = call == "ragged"
    query, key, value = _inputs(device, dtype, KEPT if ragged else 0.0)
    chosen = chosen_kernel() if choice == "auto" else choice
    try:
        with attention_kernel(chosen), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            first = seconds_for(lambda: attend(query, key, value, ragged=ragged), device)
            with DispatchedKernels() as dispatched:
                result = attend(query, key, value, ragged=ragged)
            later = min(seconds_for(lambda: attend(query, key, value, ragged=ragged), device) for _ in range(_REPEATS))
    except (InputError, RuntimeError) as error:
        reasons = [str(warning.message).splitlines()[0] for warning in told]
        return KernelCheck(call, choice, "", why=_reason(reasons, error))
    exact = torch.softmax(query.float() @ key.float().mT / CHANNELS**0.5, -1) @ value.float()
    error_of = (result.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    kernel = dispatched.kernels[0] if dispatched.kernels else "math"
    return KernelCheck(call, choice, kernel, 1e3 * first, 1e3 * later, float(error_of))


def _reason(told: Sequence[str], error: Exception) -> str:
    """PyTorch says in warnings what each kernel lacks; of those that nobody asked for, that they are disabled."""
    demands = [text for text in told if "not used because" not in text and "disabled" not in text]
    words = (demands or [str(error).splitlines()[0]])[-1]
    return words.split(" (Triggered internally")[0][:_REASON]


def _inputs(device: torch.device, dtype: torch.dtype, kept: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as layers have them: heads are a view of channels."""
    generator = torch.Generator().manual_seed(0)
    heads, own = (HEADS, TOKENS) if device.type == "cuda" else (CPU_HEADS, CPU_TOKENS)

    def drawn(tokens: int) -> Tensor:
        flat = torch.randn(ROWS, tokens, heads * CHANNELS, generator=generator).to(device, dtype)
        return flat.unflatten(2, (heads, CHANNELS)).transpose(1, 2)

    seen = own + int(kept * own)
    return drawn(own), drawn(seen), drawn(seen)
