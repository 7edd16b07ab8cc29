"""Which of a worker's caches stay on its device between batches: as much of them as its batches leave room for."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consistory_ray.consistory.cache.residence import PlacedCache


class ResidentCaches:
    """Shares a device's room among the caches that are still in use. Whoever was rendered last comes first."""

    def __init__(self) -> None:
        self._known: list[weakref.ref[PlacedCache]] = []
        self._given_up = False

    @property
    def nbytes(self) -> int:
        """Bytes of them all on the device."""
        return sum(placed.resident_bytes for placed in self._living())

    def share(self, cache: PlacedCache, room: int) -> None:
        """A cache is rendered next: it may take all of the room, the others what it leaves."""
        others = [placed for placed in self._living() if placed is not cache]
        self._known = [weakref.ref(placed) for placed in (cache, *others)]
        left = 0 if self._given_up else max(0, room)
        limits = []
        for placed in (cache, *others):
            limits.append((placed, left))
            left = max(0, left - placed.cache.nbytes)
        for placed, limit in reversed(limits):  # who has to go goes before anybody comes
            placed.limit(limit)

    def give_up(self) -> bool:
        """Take everything off the device, for good: a batch did not fit beside it. False if nothing was there."""
        found, self._given_up = self.nbytes > 0, True
        for placed in self._living():
            placed.limit(0)
            placed.release()
        return found

    def _living(self) -> list[PlacedCache]:
        return [placed for known in self._known if (placed := known()) is not None]
