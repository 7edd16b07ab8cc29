"""What a run tells whoever watches it, and what it says at the end. Plain values: printable, comparable, picklable.

At the end of the file stands how counts, times and bytes are worded in what a person reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from consistory_ray.errors import MaxCostReached, RunFailed, RunInterrupted

if TYPE_CHECKING:
    from consistory_ray.engine.machine import MachineReading
    from consistory_ray.output.standing import Shortfall
    from consistory_ray.plan.plan import Asset

MAX_LISTED_FAILURES = 1000

RunState = Literal["complete", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class SubjectProgress:
    """How far a subject is when the run starts: pictures planned and pictures there, anchors included."""

    subject_id: str
    planned: int
    done: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The output was compared with the plan; once more after every :class:`Paused`."""

    name: str
    url: str
    subjects: tuple[SubjectProgress, ...]
    planned: int
    done: int
    recovered: int


@dataclass(frozen=True, slots=True)
class WorkersRequested:
    """The cluster was asked for workers."""

    count: int
    device: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has loaded the model."""

    worker: str
    place: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died; ``replaced`` tells whether another one was asked for in its place, ``fault`` is a
    :class:`~consistory_ray.engine.faults.Fault` value."""

    worker: str
    reason: str
    replaced: bool
    fault: str = "worker-died"


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """A worker's machine is going away: it finishes what it has in hand, and is then released."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerReleased:
    """A worker was let go: there is nothing left for it, or its machine is going away."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class AnchorsReady:
    """A subject's anchors were made, or their cache was loaded from the output."""

    subject_id: str
    made: bool
    seconds: float
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class AssetDone:
    """A picture is on storage; ``score`` is what the job's gate found in it."""

    asset: Asset
    seconds: float
    worker: str
    attempt: int = 1
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TakesWanted:
    """Pictures fall short of the job's gate: these further takes are made besides what was planned."""

    takes: tuple[Asset, ...]


@dataclass(frozen=True, slots=True)
class AssetFailed:
    """A picture was given up; ``fault`` is a :class:`~consistory_ray.engine.faults.Fault` value."""

    asset: Asset
    error: str
    fault: str = "error"
    worker: str = ""
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know, and the run goes on: a retry, a cache made again, a wait."""

    message: str


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A call came back: what a worker did with its time.

    Attributes:
        worker: its name.
        kind: ``anchors`` or ``scenes``.
        pictures: how many it delivered.
        phases: seconds by phase: ``load`` (of a cache), ``anchors`` or ``scenes`` (the device), ``score``, ``encode``,
            ``write``;
            renderers may split the device's share further (``pass1``, ``pass2``, ``decode``).
        idle: seconds the device waited for this batch after the one before it.
        cache_bytes: bytes of anchor cache that the worker fetched for it; 0 if it still had them.
        device_memory: bytes of device memory in use at its peak, or None where that is not known.
        machine: a reading of the worker's machine, now and again.
    """

    worker: str
    kind: Literal["anchors", "scenes"]
    pictures: int
    phases: Mapping[str, float]
    idle: float = 0.0
    cache_bytes: int = 0
    device_memory: int | None = None
    machine: MachineReading | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """Work that failed is tried again; ``reason`` is a :class:`~consistory_ray.engine.faults.Fault` value."""

    reason: str
    assets: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Rows were committed to the index."""

    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Pulse:
    """The coordinator's books, about once a second and once at the end.

    Attributes:
        queued: pictures that no worker has yet.
        workers, busy: workers that are ready, and those of them with a call.
        requested: workers asked for that are not ready.
        live_cache_bytes: size of the anchor caches being made or used.
        store_used, store_capacity: bytes of Ray's object store, of the whole cluster; 0 if not known.
        unplaced: those of the requested ones that wait for a place on a machine.
        short_of_room: those of the ready ones that have nothing to do because there is no room for a cache.
    """

    queued: int
    workers: int
    busy: int
    requested: int
    live_cache_bytes: int
    store_used: int = 0
    store_capacity: int = 0
    unplaced: int = 0
    short_of_room: int = 0


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run was asked to stop; ``calls`` calls are still out."""

    reason: str
    calls: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The output is out of reach: all workers were let go, and after a while another :class:`RunStarted` follows.

    Attributes:
        reason: what went wrong.
        seconds: until the next try.
        left: seconds for which the run goes on trying.
    """

    reason: str
    seconds: float
    left: float


@dataclass(frozen=True, slots=True)
class AssetFailure:
    """One line of a run's list of failures."""

    asset_id: str
    path: str
    error: str
    fault: str = "error"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended.

    Attributes:
        name: the job's name.
        url: where everything is.
        state: ``complete``; ``failed``: over, but some assets failed; ``interrupted``: the same command resumes it.
        planned: pictures in the plan, anchors included.
        found: those that were there before.
        rendered, failed: those of this run.
        seconds: how long it took.
        failures: what failed and why, the first 1,000; the index has them all.
        failures_by_kind: how many failed in this run, by :class:`~consistory_ray.engine.faults.Fault` value.
        stopped: why the run ended before everything was tried; empty if it did not.
        caches: what became of the anchor caches, where that is worth a word.
        gallery: its page, a path below ``url``, once it was built.
        profile: what was saved on all of its scenes; None where they differ, or have settings of their own.
        spent: seconds that all workers together have spent on this run's pictures: on the ``device``, and beside it to
            ``score``, to ``encode`` and to ``write``.
        forecast: what was expected of this run at its start, as its record has it: ``pictures``, ``device_hours_low``,
            ``_likely`` and ``_high``, and the same of ``cost`` where a price was known.
        outcome: what it took, ``device_hours`` and ``cost``.
        currency: of both.
        max_cost_reached: whether it was stopped by its ``max_cost``.
        scored: pictures that were there before and have only been looked at.
        takes: how many of ``rendered`` are further takes.
        rerolls: how many of those people have asked for.
        gated: whether the job has a gate.
        short: of how many pictures no take passes the job's gate.
        shortfalls: the first 1,000 of them.
    """

    name: str
    url: str
    state: RunState
    planned: int
    found: int
    rendered: int
    failed: int
    seconds: float
    failures: tuple[AssetFailure, ...] = field(default=())
    failures_by_kind: Mapping[str, int] = field(default_factory=dict)
    stopped: str = ""
    caches: str = ""
    gallery: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)
    profile: str | None = None
    forecast: Mapping[str, float] = field(default_factory=dict)
    outcome: Mapping[str, float] = field(default_factory=dict)
    currency: str = ""
    max_cost_reached: bool = False
    scored: int = 0
    takes: int = 0
    rerolls: int = 0
    gated: bool = False
    short: int = 0
    shortfalls: tuple[Shortfall, ...] = field(default=())

    def raise_for_state(self) -> None:
        """Raise RunInterrupted or RunFailed unless the run is complete."""
        if self.state == "interrupted":
            left = self.planned - self.found - self.rendered - self.scored
            how = f"the run was stopped with {left} pictures left; the same command resumes it"
            raise MaxCostReached(f"{how}, and may cost as much again") if self.max_cost_reached else RunInterrupted(how)
        if self.state == "failed":
            lines = [f"  - {failure.path}: {failure.error}" for failure in self.failures]
            lines += [f"  - {told}" for told in map(str, self.shortfalls)]
            why = [self.stopped] if self.stopped else []
            short = f", {self.short} fall short of the gate" if self.short else ""
            raise RunFailed("\n".join([f"{self.failed} of {self.planned} pictures failed{short}", *why, *lines]))


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last event of a run."""

    summary: RunSummary


Event: TypeAlias = (
    RunStarted
    | WorkersRequested
    | WorkerReady
    | WorkerLost
    | WorkerLeaving
    | WorkerReleased
    | AnchorsReady
    | AssetDone
    | TakesWanted
    | AssetFailed
    | BatchDone
    | Retried
    | Committed
    | Pulse
    | Notice
    | Stopping
    | Paused
    | RunFinished
)


def plural(count: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Seconds for a person: ``4.2 s``, ``3 min 10 s``, ``5 h 2 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for a person: ``512 B``, ``17.3 MB``, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
