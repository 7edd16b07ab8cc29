"""How a run adds rows to the index: many at once, as parts that are merged now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType

from consistory_ray.output.index.index import compact
from consistory_ray.output.index.parts import write_part
from consistory_ray.output.index.rows import IndexRow, rows_to_table
from consistory_ray.output.lease.fencing import Lost, refuse_if_lost
from consistory_ray.output.storage import Output, as_store


class IndexWriter:
    """Collects rows and commits them as parts: every so many rows or seconds, and at the end.

    A row that was added is on storage after the next commit. When a commit fails its rows are kept and the next one
    tries again. It may be used from several threads.

    Args:
        output: the output.
        rows_per_part: commit when so many rows have been added.
        seconds_per_part: commit, at an ``add`` or ``tick``, when the oldest uncommitted row is that old.
        parts_before_compaction: merge parts into one when so many have been written, and so many of those again: no
            row is merged more often than the number of parts has digits, and there are never many parts.
        lost: why the output may no longer be written to; empty while it may. Once it is not, every commit and merge
            raises RunError before it writes or deletes anything, and rows stay in memory.
    """

    def __init__(
        self,
        output: Output,
        *,
        rows_per_part: int = 1000,
        seconds_per_part: float = 10.0,
        parts_before_compaction: int = 100,
        lost: Lost = str,
    ) -> None:
        self._store = as_store(output)
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        self._parts_before_compaction = parts_before_compaction
        self._lost = lost
        self._rows: list[IndexRow] = []
        self._oldest = 0.0
        self._levels: list[list[str]] = []
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """How many rows are not committed yet."""
        return len(self._rows)

    def add(self, row: IndexRow) -> None:
        """Take a row whose picture, if it is ok, is on storage already; may commit.

        Raises:
            StorageError: a commit was due and failed; the row is kept.
            RunError: a commit was due and the output is lost; the row is kept.
        """
        with self._lock:
            if not self._rows:
                self._oldest = time.monotonic()
            self._rows.append(row)
        self.tick()

    def extend(self, rows: Iterable[IndexRow]) -> None:
        """:meth:`add` for each of ``rows``."""
        for row in rows:
            self.add(row)

    def tick(self) -> None:
        """Commit if it is time to."""
        old = bool(self._rows) and time.monotonic() - self._oldest >= self._seconds_per_part
        if old or len(self._rows) >= self._rows_per_part:
            self.flush()

    def flush(self) -> None:
        """Commit all added rows now.

        Raises:
            StorageError: it failed; the rows are kept for the next commit.
            RunError: the output is lost; the rows are kept.
        """
        with self._lock:
            if self._rows:
                refuse_if_lost(self._lost, f"{len(self._rows)} rows were not committed to the index")
                table = rows_to_table(self._rows)
                path = write_part(self._store, table.sort_by([("subject", "ascending"), ("scene", "ascending")]))
                self._rows = []
                self._file(path, 0)
            self._merge_full_levels()

    def close(self, *, merge: bool = True) -> None:
        """Commit, and merge all parts into one unless ``merge`` is False.

        Raises:
            StorageError, RunError: as :meth:`flush` does; what was not merged is merged by the next run.
        """
        self.flush()
        if merge:
            with self._lock:
                compact(self._store, lost=self._lost)
                self._levels = []

    def _file(self, path: str, level: int) -> None:
        if level == len(self._levels):
            self._levels.append([])
        if path not in self._levels[level]:
            self._levels[level].append(path)

    def _merge_full_levels(self) -> None:
        level = 0
        while level < len(self._levels):
            if len(self._levels[level]) >= self._parts_before_compaction:
                merged = compact(self._store, only=self._levels[level], lost=self._lost)
                self._levels[level] = []
                if merged is not None:
                    self._file(merged, level + 1)
            level += 1

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(merge=kind is None)  # after an error: only what must be done
