"""A lease on an output: of several coordinators one holds it, the others are refused.

A lease is a file ``lease/<generation>.json``. Whoever creates generation n + 1 holds the output; creation is exclusive,
so of two takers one wins, and nothing ever depends on overwriting conditionally. The highest generation is the one that
counts and it is never deleted: a holder that ends marks its own file as released, the next one creates the following
generation and tidies up those before.

The holder rewrites its file every quarter of the ttl. Two rules keep it from being replaced while it works:

* A holder counts itself out as soon as a renewal was not *complete* within the ttl after the last good one *began*.
* A taker must have seen the very same bytes for a ttl and a quarter, read once more at the end (:mod:`.holders`).

Both use their own steady clocks, so no two machines' wall clocks need to agree.

The file is also how the holder knows its output again. Before each renewal it is read: if it is gone, or holds other
bytes than were last written, the output was deleted, moved, unmounted, or put back to an earlier state, and the lease
is lost. It is never written to a place where it is not.

All this needs a storage that creates exclusively. Some drivers drop the condition without a word and let both writers
win, so each holder begins by trying to create its own generation once more, with other bytes.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from consistory_ray.errors import InputError, Problem, RunError, StorageError
from consistory_ray.output.lease.holders import CLOCK, LIVE_TOKENS, RENEWALS_PER_TTL, Clock, Judge
from consistory_ray.output.lease.processes import Process, this_process
from consistory_ray.output.lease.record import (
    MAX_TTL,
    LeaseRecord,
    busy,
    describe,
    generation_after,
    generations,
    lease_path,
    look,
)
from consistory_ray.output.storage import MissingFileError, Output, OutputStore, as_store

TTL_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Lease:
    """The right to write to an output. Acquire it with :meth:`acquire`, keep it with ``with``.

    Inside ``with`` a thread renews it; at the end it is released. Outside, the caller renews. It may be used from
    several threads.
    """

    def __init__(self, store: OutputStore, generation: int, record: LeaseRecord, began: float, clock: Clock) -> None:
        self._store = store
        self._generation = generation
        self._record = record
        self._written = [record.encode()]
        self._clock = clock
        self._good_since = began
        self._lost = ""
        self._expired = self._vanished = False
        self._failure = ""
        self._released = False
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        output: Output,
        owner: str,
        *,
        ttl_seconds: float = TTL_SECONDS,
        clock: Clock = CLOCK,
        on_wait: Callable[[str], None] | None = None,
        trust_wall_clock: bool = True,
        process: Process | None = None,
    ) -> Lease:
        """Take the lease, waiting at most a ttl and a quarter for a holder that may be dead.

        Args:
            output: the output.
            owner: who takes it, for people: a run's name, a job's id.
            ttl_seconds: how long a renewal is good for, at most an hour.
            clock: where the time comes from.
            on_wait: is told, several times a ttl, what is waited for; may raise to give up.
            trust_wall_clock: whether a renewal three ttls ago by the wall clock is taken for a dead holder's.
            process: who this is; this process without it.

        Raises:
            OutputBusyError: another run holds the output.
            InputError: the ttl is out of range, or the storage does not create exclusively.
            StorageError: the storage failed.
        """
        if not 0 < ttl_seconds <= MAX_TTL:
            fix = f"choose more than 0 and at most {MAX_TTL:g} seconds"
            raise InputError("the lease cannot be taken", [Problem("ttl_seconds", str(ttl_seconds), fix)])
        store, process = as_store(output), process or this_process()
        seen = look(store)
        if not seen.is_free:
            Judge(store, clock, process, on_wait, trust_wall_clock, ttl_seconds).wait_until_free(seen)
        generation = generation_after(store, seen.generation)
        if not generation:  # nobody ever got that far: put there by hand, it may not lock the output for ever
            store.delete(lease_path(seen.generation))
            return cls.acquire(
                store, owner, ttl_seconds=ttl_seconds, clock=clock, on_wait=on_wait,
                trust_wall_clock=trust_wall_clock, process=process,
            )  # fmt: skip
        now, began = clock.wall(), clock.steady()
        record = LeaseRecord(uuid.uuid4().hex, owner, process, now, now, float(ttl_seconds))
        lease = cls(store, generation, record, began, clock)
        lease._create()
        return lease

    @property
    def lost(self) -> str:
        """Why the output may no longer be written to; empty while it may. Never raises, and once lost stays lost."""
        if not self._lost and self._is_overdue():
            age = self._clock.steady() - self._good_since
            because = f": {self._failure}" if self._failure else ""
            self._lost = f"the lease on {self._store.url} was not renewed for {age:.0f} s{because}"
            self._expired = True
        return self._lost

    @property
    def expired(self) -> bool:
        """Whether it was lost because it could not be renewed in time; nobody else was seen to have taken over."""
        return self._expired

    @property
    def vanished(self) -> bool:
        """Whether it was lost because its file is not as it was left, and no other run was seen to have come."""
        return self._vanished

    @property
    def record(self) -> LeaseRecord:
        """What the lease file said after the last renewal."""
        return self._record

    def renew(self) -> bool:
        """Renew the lease now; False when it is lost. The output itself is looked at too: see the module.

        Raises:
            StorageError: the storage failed. The lease is good until its ttl is over: try again.
        """
        with self._lock:
            if self._released or self.lost:
                return False
            began = self._clock.steady()
            if not self._is_as_it_was_left():
                return False
            record = replace(self._record, renewed_at=self._clock.wall(), beat=self._record.beat + 1)
            self._write(record)
            highest = max(generations(self._store), default=0)
            if highest > self._generation:
                self._lost = self._superseded(highest)
            if self.lost:  # a renewal counts only if it was complete before the last one's time was over
                return False
            self._record, self._good_since, self._failure = record, began, ""
            self._written = self._written[-1:]
            return True

    def confirm(self, what: str) -> None:
        """Go on only if the output is still this holder's, and the one that it took.

        Raises:
            RunError: it is not; the message begins with ``what`` cannot be done and ends with the reason.
            StorageError: the storage failed.
        """
        if not self.renew():
            raise RunError(f"{what}: {self.lost}")

    def release(self) -> None:
        """Give the lease back, so that the next run need not wait. A storage that fails now only makes it wait."""
        self._ending.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._record.ttl_seconds / RENEWALS_PER_TTL)
        held = not self._released and not self.lost
        self._released = True
        LIVE_TOKENS.discard(self._record.token)
        try:
            if held and self._is_as_it_was_left():
                record = replace(self._record, renewed_at=self._clock.wall(), beat=self._record.beat + 1, released=True)
                self._write(record)
        except StorageError as error:
            _log.warning("the lease on %s could not be released and runs out by itself: %s", self._store.url, error)
        self._lost = self._lost or "the lease was released"

    def __enter__(self) -> Lease:
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep(self) -> None:
        while not self._ending.wait(self._record.ttl_seconds / RENEWALS_PER_TTL):
            try:
                if not self.renew():
                    return
            except Exception as error:  # whatever it is, it becomes the reason once the ttl is over
                self._failure = f"{type(error).__name__}: {error}"
                _log.warning("the lease on %s could not be renewed: %s", self._store.url, error)

    def _is_as_it_was_left(self) -> bool:
        """Whether the file holds what was last written. If not, the lease is lost from now on."""
        path = lease_path(self._generation)
        try:
            found = self._store.read(path)
        except MissingFileError:
            found = b""
        if found in self._written:
            return True
        highest = max(generations(self._store), default=0)
        if highest > self._generation:
            self._lost = self._superseded(highest)
            return False
        self._vanished = True
        why = "does not hold what was last written" if found else "is gone"
        self._lost = (
            f"the lease on {self._store.url} was not renewed, its file {path} {why}: "
            "the output was deleted, moved or replaced, or is not mounted any more"
        )
        return False

    def _write(self, record: LeaseRecord) -> None:
        data = record.encode()
        self._written.append(data)  # before: a write that fails may have been carried out
        self._store.begun(lease_path(self._generation)).write_atomic(lease_path(self._generation), data)

    def _create(self) -> None:
        """Become the holder.

        Raises:
            OutputBusyError: another one was faster.
            InputError: the storage does not create exclusively.
            StorageError: the storage failed; the next try of this process is not held up by what this one left.
        """
        path, token = lease_path(self._generation), self._record.token
        LIVE_TOKENS.add(token)
        try:
            created = self._store.create_exclusive(path, self._record.encode())
            there = generations(self._store)
            if not created or max(there, default=0) != self._generation:
                if created:  # long overtaken
                    self._store.delete(path)
                raise busy(self._store, look(self._store).record)
            self._probe(path)
            for generation in there:
                if generation < self._generation:
                    with suppress(StorageError):  # the next holder tidies up as well
                        self._store.delete(lease_path(generation))
        except BaseException:
            LIVE_TOKENS.discard(token)
            raise

    def _probe(self, path: str) -> None:
        """Try to create what is there, with other bytes: who is told that this worked would be one of two holders.

        Raises:
            OutputBusyError: this one was long overtaken, and its file was tidied up.
            InputError: the storage overwrites, or says that it has.
            StorageError: the storage failed.
        """
        for _ in range(2):  # the first time it may have been gone; then it is there now, and whole
            other = replace(self._record, token=uuid.uuid4().hex, released=True)
            created = self._store.create_exclusive(path, other.encode())
            if not created:
                break
            if max(generations(self._store), default=0) > self._generation:
                self._store.delete(path)
                raise busy(self._store, look(self._store).record)
        kept = self._store.read(path)
        if not created and kept in self._written:
            return
        with suppress(StorageError):
            self._store.delete(path)
        if not created:
            raise StorageError(f"{self._store.url}/{path} was deleted or replaced as soon as it was there")
        winner = "the first bytes stayed" if kept in self._written else "the last bytes won"
        fix = (
            "use a storage that creates exclusively (S3: If-None-Match: *), with fsspec, s3fs, gcsfs and adlfs of "
            f"2024.12 or later and botocore after 1.35.20; here one file was created twice, and {winner}"
        )
        raise InputError(
            "the output cannot be used: two runs could hold it at once", [Problem("output", self._store.url, fix)]
        )

    def _is_overdue(self) -> bool:
        return self._clock.steady() - self._good_since > self._record.ttl_seconds

    def _superseded(self, generation: int) -> str:
        with suppress(StorageError):
            other = LeaseRecord.decode(self._store.read(lease_path(generation)))
            if other is not None:
                return f"{describe(other)} has taken over {self._store.url}"
        return f"another run has taken over {self._store.url}"
