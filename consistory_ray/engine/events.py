"""What a run tells whoever watches it, and what it says at the end. Plain values: printable, comparable, picklable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from consistory_ray.errors import RunFailed, RunInterrupted

if TYPE_CHECKING:
    from consistory_ray.plan import Asset

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
    """The output was compared with the plan."""

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
    """A worker died; ``replaced`` tells whether another one was asked for in its place."""

    worker: str
    reason: str
    replaced: bool


@dataclass(frozen=True, slots=True)
class AnchorsReady:
    """A subject's anchors were made, or their cache was loaded from the output."""

    subject_id: str
    made: bool
    seconds: float
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class AssetDone:
    """A picture is on storage."""

    asset: Asset
    seconds: float
    worker: str


@dataclass(frozen=True, slots=True)
class AssetFailed:
    """A picture was given up."""

    asset: Asset
    error: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know, and the run goes on: a retry, a cache made again, a wait."""

    message: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run was asked to stop; ``calls`` calls are still out."""

    reason: str
    calls: int


@dataclass(frozen=True, slots=True)
class AssetFailure:
    """One line of a run's list of failures."""

    asset_id: str
    path: str
    error: str


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

    def raise_for_state(self) -> None:
        """Raise RunInterrupted or RunFailed unless the run is complete."""
        if self.state == "interrupted":
            left = self.planned - self.found - self.rendered
            raise RunInterrupted(f"the run was stopped with {left} pictures left; the same command resumes it")
        if self.state == "failed":
            lines = [f"  - {failure.path}: {failure.error}" for failure in self.failures]
            raise RunFailed("\n".join([f"{self.failed} of {self.planned} pictures failed", *lines]))


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last event of a run."""

    summary: RunSummary


Event: TypeAlias = (
    RunStarted
    | WorkersRequested
    | WorkerReady
    | WorkerLost
    | AnchorsReady
    | AssetDone
    | AssetFailed
    | Notice
    | Stopping
    | RunFinished
)
