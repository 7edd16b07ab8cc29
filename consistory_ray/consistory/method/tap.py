"""Looking into a call of the network while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Tap: TypeAlias = Callable[[Tensor], None]
"""Is shown a tensor of a running call; what it wants to keep it copies, unless it is told that it need not."""
