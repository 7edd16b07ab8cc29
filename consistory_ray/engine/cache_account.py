"""Which anchor caches are alive, how large they are, and whether there is room for another one."""

from __future__ import annotations


class CacheAccount:
    """Bytes by subject. A cache is alive from when its anchors are begun until its subject needs it no more, and while
    it is being saved.

    Args:
        budget: bytes that may be alive at a time; None is no limit. One cache is always allowed.

    Attributes:
        budget: as above; may change.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self._room: int | None = None  # what was alive when the object store was full
        self._scale = 1.0  # true over expected size, of the last cache that was made
        self._used: dict[str, int] = {}
        self._saving: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Bytes of all that is alive."""
        return sum(self._used.values()) + sum(size for name, size in self._saving.items() if name not in self._used)

    @property
    def is_limited(self) -> bool:
        """Whether letting go of one may make room for another."""
        return self.budget is not None or self._room is not None

    def opens(self, subject_id: str, expected: int) -> bool:
        """Enter a cache that is about to be made or loaded, unless there is no room for it."""
        size = round(expected * self._scale)
        if self._used or self._saving:
            then = self.total + size
            if any(limit is not None and then > limit for limit in (self.budget, self._room)):
                return False
        self._used[subject_id] = size
        return True

    def made(self, subject_id: str, expected: int, size: int) -> None:
        """Its true size is known."""
        self._used[subject_id] = size
        self._scale = size / expected if expected else 1.0

    def close(self, subject_id: str) -> bool:
        """Nobody needs it any more; whether anybody did before."""
        return self._used.pop(subject_id, None) is not None

    def full(self) -> None:
        """The object store had no room for one more than there are now."""
        self._room = self.total

    def pin(self, subject_id: str, size: int) -> None:
        """It stays alive until :meth:`unpin`, because it is being saved."""
        self._saving[subject_id] = size

    def unpin(self, subject_id: str) -> None:
        """It was saved, or will not be."""
        self._saving.pop(subject_id, None)
