"""Counting the arithmetic of a call: a multiplication and an addition are 2 FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

_aten: Any = torch.ops.aten


def _fused_attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop(query, key, value))


def count_flops() -> FlopCounterMode:
    """A ``FlopCounterMode`` that knows every fused attention kernel.

    On a CPU ``scaled_dot_product_attention`` dispatches to a kernel that torch 2.13's counter leaves out in silence.
    """
    kernels = (
        _aten._scaled_dot_product_flash_attention_for_cpu,
        _aten._scaled_dot_product_fused_attention_overrideable,
    )
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(kernels, _fused_attention_flops))
