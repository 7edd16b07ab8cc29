"""What went wrong so far with which asset, and whether it may be tried again, where, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from consistory_ray.engine.faults import Caps, Fault


@dataclass(slots=True)
class _Trouble:
    errors: int = 0
    crashes: int = 0
    storage: int = 0
    alone: bool = False
    avoid: set[str] = field(default_factory=set)


class FailureRecord:
    """Failures so far. Keys are asset ids, or :func:`anchors_key` for a subject's anchors as a whole.

    Args:
        caps: how often what may be tried.
    """

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._troubles: dict[str, _Trouble] = {}

    def charge(self, key: str, fault: Fault, worker: str, alone: bool) -> bool:
        """Write a failure down.

        Args:
            key: whose failure.
            fault: what it was.
            worker: where it was.
            alone: whether nothing else was on that worker. Only then is a dead worker the asset's fault.

        Returns:
            True if that was one failure too many.
        """
        trouble = self._troubles.setdefault(key, _Trouble())
        if fault in (Fault.BAD_ASSET, Fault.REJECTED):
            return True
        if fault.blames_assets:
            trouble.alone = True
            if alone:
                trouble.crashes += 1
                trouble.avoid.add(worker)
        elif fault is Fault.STORAGE:
            trouble.storage += 1
        elif fault in (Fault.ERROR, Fault.OUT_OF_MEMORY):
            trouble.errors += 1
            trouble.avoid.add(worker)
        return trouble.crashes >= self._caps.crashes or trouble.errors >= self._caps.attempts

    def suspect(self, key: str) -> None:
        """Try it by itself from now on, without blame: something in its batch went wrong."""
        self._troubles.setdefault(key, _Trouble())

    def storage_given_up(self, key: str) -> bool:
        """Whether the storage failed so often that the run should stop."""
        trouble = self._troubles.get(key)
        return trouble is not None and trouble.storage >= self._caps.storage_attempts

    def number(self, key: str) -> int:
        """Which attempt the next one is, from 1."""
        trouble = self._troubles.get(key)
        return 1 if trouble is None else 1 + trouble.errors + trouble.crashes + trouble.storage

    def troubled(self, key: str) -> bool:
        """Whether anything was ever written down; such an asset is rendered in a batch of one."""
        return key in self._troubles

    def alone(self, key: str) -> bool:
        """Whether it has to be the only thing on its worker, because a worker died with it."""
        trouble = self._troubles.get(key)
        return trouble is not None and trouble.alone

    def may_try(self, key: str, worker: str, workers: Iterable[str]) -> bool:
        """Not again where it went wrong before, as long as there is a worker where it did not."""
        trouble = self._troubles.get(key)
        if trouble is None or worker not in trouble.avoid:
            return True
        return all(name in trouble.avoid for name in workers)

    def crashed_on(self, key: str) -> frozenset[str]:
        """The workers that it took down while it was alone on them."""
        trouble = self._troubles.get(key)
        return frozenset(trouble.avoid) if trouble is not None and trouble.crashes else frozenset()

    def forget(self, key: str) -> None:
        """It is settled."""
        self._troubles.pop(key, None)


def anchors_key(subject_id: str) -> str:
    """The key of a subject's anchors as a whole."""
    return f"anchors of {subject_id}"
