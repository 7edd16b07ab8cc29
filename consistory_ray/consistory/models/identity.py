"""What a loaded pipeline is known by: its weights, and what was fused into them.

Fused weights are rounded sums, and those of another dtype have other signs here and there. So a model with something
fused into it goes by the weights before, which :mod:`consistory_ray.consistory.models.fingerprint` reads alike in
every dtype, and by the contents of what was added; unless somebody has changed the weights since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consistory_ray.consistory.models.fingerprint import model_fingerprint

_ATTRIBUTE = "_consistory_ray_fused"


@dataclass(frozen=True)
class _Fused:
    """What is known of a pipeline.

    Attributes:
        after: the fingerprint of its weights as they are with everything in them.
        fingerprint: what it goes by while they are.
    """

    after: str
    fingerprint: str


def remember(pipe: Any, before: str, added: Sequence[str]) -> None:
    """Note what was added to a pipeline's weights.

    Args:
        pipe: with everything in its weights.
        before: the fingerprint of its weights without.
        added: identities of what was added, in any order.
    """
    if added:
        digest = hashlib.sha256("\n".join([before, *sorted(added)]).encode()).hexdigest()
        setattr(pipe, _ATTRIBUTE, _Fused(model_fingerprint(pipe), digest))


def pipeline_fingerprint(pipe: Any) -> str:
    """What a pipeline goes by, as it is at the moment; 64 hexadecimal digits."""
    found = model_fingerprint(pipe)
    fused: _Fused | None = getattr(pipe, _ATTRIBUTE, None)
    if fused is None:
        return found
    if found == fused.after:
        return fused.fingerprint
    return hashlib.sha256(f"{fused.fingerprint}\n{found}".encode()).hexdigest()
