"""Given pictures handled otherwise than the package does, for benchmarks/personalization_choices.py to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor

from consistory_ray.consistory import subjects
from consistory_ray.consistory.method.companions import LiveAnchors
from consistory_ray.consistory.method.given import GivenAnchors
from consistory_ray.consistory.method.request import Batch
from consistory_ray.consistory.method.sampler import Sampler

Patches = dict[tuple[Any, str], Any]


@contextmanager
def _patched(patches: Patches) -> Iterator[None]:
    before = {(owner, name): getattr(owner, name) for owner, name in patches}
    try:
        for (owner, name), value in patches.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)


def one_noise() -> AbstractContextManager[None]:
    """The same noise at every step."""
    return _patched({(Batch, "noise"): lambda self, step: self.latents})


def together(*, early_masks: bool = False) -> AbstractContextManager[None]:
    """The pictures see each other in both passes, as sampled anchors do.

    Args:
        early_masks: masks are found on the way, as those of sampled anchors are, not beforehand.
    """

    def both_passes(network: Any, path: Any, request: Any, anchors: Any, *_: Any) -> None:
        anchors.needs_masks = early_masks
        Sampler(network, path, request, anchors).sample()

    def exchange(self: Any, at: Any, masks: Any) -> Any:
        return LiveAnchors.exchange(self, at, masks if early_masks else self._given)

    def prepare_injection(self: Any, features: Tensor, masks: Any) -> Any:
        if early_masks:
            self._given = masks  # pass 1's final ones
        return LiveAnchors.prepare_injection(self, features, self._given)

    patches: Patches = {(subjects, "sweep"): both_passes, (GivenAnchors, "exchange"): exchange}
    patches |= {(GivenAnchors, "prepare_injection"): prepare_injection}
    return _patched(patches)


VARIANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "one noise": one_noise,
    "together": together,
    "together, early masks": lambda: together(early_masks=True),
}
"""By name; the first is what the package does."""
