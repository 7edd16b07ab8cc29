"""Whether a lease may be taken: finding out that its holder is dead, without disturbing one that is alive.

A taker must have seen the very same bytes for a ttl and a quarter by its own steady clock, read once more at the end.
Two shortcuts spare the waiting: a holder on this machine whose process is gone, and a renewal that is older than three
ttls by the wall clock, by a holder that is not of this start of this machine (whose processes can be looked at, and
whose clock may have been set).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from consistory_ray.output.lease.processes import Process, is_gone, is_running, shares_boot, this_process
from consistory_ray.output.lease.record import LeaseRecord, SeenLease, busy, describe, look
from consistory_ray.output.storage import Output, OutputStore, as_store

RENEWALS_PER_TTL = 4
PATIENCE_TTLS = 1 + 1 / RENEWALS_PER_TTL
"""For so many ttls a holder elsewhere has to be silent before it is taken for dead."""
STALE_TTLS = 3.0
"""A renewal that many ttls ago, by the wall clock, is not worth waiting for."""

_POLLS_PER_TTL = 30


def _steady() -> float:
    """Seconds that only go forward and, where the system can tell, count while the machine sleeps."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass(frozen=True)
class Clock:
    """Where a lease takes the time from.

    Attributes:
        wall: seconds since 1970, for people and for the shortcut over three ttls.
        steady: seconds that only go forward, for everything that has to be right.
        sleep: waits so many seconds.
    """

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = _steady
    sleep: Callable[[float], None] = time.sleep


CLOCK = Clock()


def current_lease(output: Output) -> LeaseRecord | None:
    """What the lease file that counts says, released or not; None when there is none or it cannot be understood.

    Raises:
        StorageError: the storage failed.
    """
    return look(as_store(output)).record


def is_silent(record: LeaseRecord, now: float | None = None, *, waits: bool = False) -> bool:
    """Whether the holder of a lease is gone as far as an onlooker can tell, who trusts other machines' wall clocks.

    Args:
        record: the lease.
        now: seconds since 1970; the present without it.
        waits: it has said that it would come back, so a lease that was released is no sign of its end.
    """
    age = (time.time() if now is None else now) - record.renewed_at
    is_stale = age > STALE_TTLS * record.ttl_seconds and not is_running(record.process)
    return (record.released and not waits) or is_gone(record.process) or is_stale


LIVE_TOKENS: set[str] = set()
"""Tokens of the leases that this process holds or is taking; any other one in its name was left by a failed try."""


@dataclass(frozen=True)
class Judge:
    """Finds out whether the holder of a lease is dead."""

    store: OutputStore
    clock: Clock
    process: Process
    on_wait: Callable[[str], None] | None
    trust_wall_clock: bool
    ttl_seconds: float

    def wait_until_free(self, seen: SeenLease) -> None:
        """Return once the holder is known to be dead or has released the lease.

        Raises:
            OutputBusyError: it is alive.
        """
        if seen.record is not None and self._is_dead(seen.record):
            return
        if seen.record is not None and self._is_alive(seen.record):
            raise busy(self.store, seen.record)
        ttl = seen.record.ttl_seconds if seen.record is not None else self.ttl_seconds
        patience = ttl * PATIENCE_TTLS
        began = self.clock.steady()  # after the bytes were read, never before
        while True:
            over = self.clock.steady() - began > patience
            now = look(self.store)
            if now.generation == seen.generation and now.record is not None and now.record.released:
                return
            if (now.generation, now.data) != (seen.generation, seen.data):
                raise busy(self.store, now.record)
            if over:  # decided before the last look, so that what it saw is old enough
                return
            left = patience - (self.clock.steady() - began)
            if self.on_wait is not None:
                holder = describe(seen.record) if seen.record is not None else "a run that cannot be identified"
                self.on_wait(f"{self.store.url} is held by {holder}; taking over in {max(left, 0):.0f} s if it is dead")
            self.clock.sleep(ttl / _POLLS_PER_TTL)

    def _is_dead(self, record: LeaseRecord) -> bool:
        if record.process == self.process and self.process == this_process() and record.token not in LIVE_TOKENS:
            return True
        if is_gone(record.process):
            return True
        # a clock that was set says nothing, and all of this start of the machine have this one
        trusted = self.trust_wall_clock and not shares_boot(record.process, self.process)
        return trusted and self.clock.wall() - record.renewed_at > STALE_TTLS * record.ttl_seconds

    def _is_alive(self, record: LeaseRecord) -> bool:
        """Certainly alive: a running process of this machine whose last renewal is recent by the same clock."""
        age = self.clock.wall() - record.renewed_at
        return is_running(record.process) and -1 < age <= record.ttl_seconds
