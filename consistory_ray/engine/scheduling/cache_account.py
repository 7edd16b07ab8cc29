"""Which anchor caches are alive, how large they are, where their copies lie, and whether there is room for another one.

A cache costs room on every machine that uses it. What runs full is one machine's object store, never the cluster's sum:
so there is a limit for each machine, and only where somebody asks for it one for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping


class CacheAccount:
    """Bytes by subject and by machine. A cache is alive from when its anchors are begun until its subject needs it no
    more, and while it is being saved; its copies count until then, wherever they are.

    Args:
        budget: bytes that may be alive at a time, each cache counted once; None is no limit. One cache is always
            allowed.
        limits: bytes that may lie on each machine; a machine that is not named has no limit. One cache is always
            allowed there.

    Attributes:
        budget, limits: as above; may change.
    """

    def __init__(self, budget: int | None, limits: Mapping[str, int] | None = None) -> None:
        self.budget = budget
        self.limits: Mapping[str, int] = limits or {}
        self._rooms: dict[str, int] = {}  # what a machine held when its object store was full
        self._scale = 1.0  # true over expected size, of the last cache that was made
        self._used: dict[str, int] = {}
        self._saving: dict[str, int] = {}
        self._origins: dict[str, str] = {}  # where it was made or loaded
        self._held: dict[str, set[str]] = {}  # machine: subjects

    @property
    def total(self) -> int:
        """Bytes of all that is alive, each cache counted once."""
        return sum(self._used.values()) + sum(size for name, size in self._saving.items() if name not in self._used)

    @property
    def is_limited(self) -> bool:
        """Whether letting go of one may make room for another."""
        return self.budget is not None or bool(self.limits) or bool(self._rooms)

    def held(self, node: str) -> int:
        """Bytes of the copies on a machine."""
        return sum(self._size(name) for name in self._held.get(node, ()))

    def limit(self, node: str) -> int | None:
        """Bytes that may lie on a machine: its limit, or less if its object store turned out to be full before."""
        known = [limits[node] for limits in (self.limits, self._rooms) if node in limits]
        return min(known) if known else None

    def expected(self, size: int) -> int:
        """The size that was expected of a cache, in the light of the last one that was made."""
        return round(size * self._scale)

    def opens(self, subject_id: str, expected: int, node: str = "") -> bool:
        """Enter a cache that is about to be made or loaded on a machine, unless there is no room for it."""
        size = self.expected(expected)
        alive = self._used or self._saving
        if self.budget is not None and alive and self.total + size > self.budget:
            return False
        if not self._fits(node, size):
            return False
        self._used[subject_id] = size
        self._origins[subject_id] = node
        self._held.setdefault(node, set()).add(subject_id)
        return True

    def copies(self, subject_id: str, node: str, *, needed: bool = False) -> bool:
        """Enter a copy that a machine is about to get of a cache, unless there is no room and it is not ``needed``."""
        held = self._held.setdefault(node, set())
        if subject_id not in held:
            if not needed and not self._fits(node, self._size(subject_id)):
                return False
            held.add(subject_id)
        return True

    def made(self, subject_id: str, expected: int, size: int) -> None:
        """Its true size is known."""
        self._used[subject_id] = size
        self._scale = size / expected if expected else 1.0

    def close(self, subject_id: str) -> bool:
        """Nobody needs it any more; whether anybody did before."""
        known = self._used.pop(subject_id, None) is not None
        self._drop(subject_id)
        return known

    def full(self, node: str = "") -> None:
        """The machine's object store had no room for one more than there are now."""
        self._rooms[node] = self.held(node)

    def pin(self, subject_id: str, size: int) -> None:
        """It stays alive until :meth:`unpin`, because it is being saved."""
        self._saving[subject_id] = size

    def unpin(self, subject_id: str) -> None:
        """It was saved, or will not be."""
        self._saving.pop(subject_id, None)
        if subject_id not in self._used:
            self._drop(subject_id)

    def _size(self, subject_id: str) -> int:
        size = self._used.get(subject_id)
        return self._saving.get(subject_id, 0) if size is None else size

    def _fits(self, node: str, size: int) -> bool:
        limit = self.limit(node)
        return limit is None or not self._held.get(node) or self.held(node) + size <= limit

    def _drop(self, subject_id: str) -> None:
        """What is still being saved stays where it was made; the copies go."""
        stays = self._origins.get(subject_id) if subject_id in self._saving else None
        if stays is None:
            self._origins.pop(subject_id, None)
        for node in [node for node, held in self._held.items() if subject_id in held and node != stays]:
            self._held[node].discard(subject_id)
            if not self._held[node]:
                del self._held[node]
