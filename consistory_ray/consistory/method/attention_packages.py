"""Attention of packages that are not needed: imported only where somebody asks for them by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from consistory_ray.errors import InputError, Problem


@dataclass(frozen=True)
class AttentionPackage:
    """A package's attention.

    Attributes:
        module, name: where its function is.
        install: what brings it.
        heads_first: whether it takes [rows, heads, tokens, head channels], else [rows, tokens, heads, head channels].
        options: further arguments.
    """

    module: str
    name: str
    install: str
    heads_first: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def function(self) -> Callable[..., Any]:
        """The package's function.

        Raises:
            InputError: it is not installed, or not in this form.
        """
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError, OSError) as error:
            fix = f"install it ({self.install}), or use 'auto'"
            problem = Problem("attention_kernel", f"{self.module}.{self.name}: {str(error)[:200]}", fix)
            raise InputError("the package of the attention kernel is not there", [problem]) from error
        return found


PACKAGES: Mapping[str, AttentionPackage] = MappingProxyType(
    {
        "flash3": AttentionPackage(
            "flash_attn_interface", "flash_attn_func", "hopper/ of github.com/Dao-AILab/flash-attention", False
        ),
        "sage": AttentionPackage(
            "sageattention", "sageattn", "pip install sageattention", True, {"tensor_layout": "HND"}
        ),
    }
)
"""FlashAttention-3, for Hopper; and SageAttention, whose queries and keys have 8 bits. By their kernels' names."""


def attend_with(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention without a mask, as :func:`~consistory_ray.consistory.method.attention_kernel.attend` has it.

    Raises:
        InputError: the package is not there.
    """
    package = PACKAGES[kernel]
    inputs = (query, key, value)
    if not package.heads_first:
        inputs = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    found = package.function()(*inputs, **package.options)
    output: Tensor = found[0] if isinstance(found, tuple) else found  # some versions return log-sum-exp too
    return output if package.heads_first else output.transpose(1, 2)
