"""What the scheduler decides about: the work that comes in, the calls that go out, and what it knows in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal, TypeAlias

CallKind = Literal["anchors", "scenes"]

PictureSize: TypeAlias = tuple[int | None, int | None]
"""Height and width; None is the model's own."""


@dataclass(frozen=True, slots=True)
class SubjectWork:
    """What is left to do for one subject.

    Attributes:
        subject_id: the subject.
        anchors: asset ids of all of its anchors if they have to be made, empty if their cache may be loaded.
        scenes: asset ids still to be rendered, in the plan's order.
        cache_bytes: expected size of its anchor cache.
        size: height and width; assets of equal size share one learnt batch size.
    """

    subject_id: str
    anchors: tuple[str, ...]
    scenes: tuple[str, ...]
    cache_bytes: int = 0
    size: PictureSize = (None, None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one worker.

    Attributes:
        call_id: unique within the run.
        worker: the worker it goes to.
        kind: ``"anchors"`` makes the subject's anchors, or loads their cache if ``assets`` is empty.
        subject_id: the subject.
        assets: ids of the assets the call has to deliver.
        attempt: 1 for the first time these assets are tried.
        alone: the worker gets nothing else meanwhile.
        generation: which incarnation of the subject's cache the call reads.
    """

    call_id: int
    worker: str
    kind: CallKind
    subject_id: str
    assets: tuple[str, ...]
    attempt: int = 1
    alone: bool = False
    generation: int = 0


class State(Enum):
    """Where a subject stands."""

    WAITING = auto()  # for a worker to make or load its anchors
    MAKING = auto()
    READY = auto()  # scenes can be rendered
    OVER = auto()


@dataclass(slots=True, eq=False)
class OpenSubject:
    """A subject that is not over, and what is left of it."""

    work: SubjectWork
    pending: deque[str]  # rendered in batches
    singles: deque[str] = field(default_factory=deque)  # rendered one by one, after some trouble
    suspects: deque[str] = field(default_factory=deque)  # rendered alone on a worker, after one died
    state: State = State.WAITING
    homes: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)  # machines whose object store has a copy of the cache
    in_flight: int = 0
    generation: int = 0
    losses: int = 0  # of its cache, since the last success
    anchors_made: bool = False
    given_up: bool = False
    killers: int = 0  # assets given up for taking workers down, since the last success
    failures: int = 0  # assets given up for other reasons, since the last success

    @property
    def takeable(self) -> int:
        """How many scenes a worker may take, apart from suspects."""
        return len(self.pending) + len(self.singles)


@dataclass(slots=True, eq=False)
class KnownWorker:
    """A worker, its machine, the calls it has, and the subject it stays with.

    ``batches`` tells for picture sizes how many scenes fit into its memory, where it knows; ``leaving`` workers get no
    more calls; ``shaken`` ones have taken the place of one that died, and are tried with other work before a suspect.
    """

    name: str
    node: str = ""
    batches: Mapping[PictureSize, int] = field(default_factory=dict)
    leaving: bool = False
    shaken: bool = False
    calls: dict[int, Call] = field(default_factory=dict)
    home: OpenSubject | None = None


FIRST_PATIENCE = 32


@dataclass(slots=True)
class BatchLimit:
    """How many scenes at a time a worker was found to have room for; it grows again, ever more slowly.

    Attributes:
        count: scenes.
        patience: batches of that many scenes that have to succeed before one more is tried; twice as many after every
            time that the device ran out of memory.
        good: how many have.
    """

    count: int
    patience: int = FIRST_PATIENCE
    good: int = 0

    def exceeded(self, scenes: int) -> None:
        """A batch of so many scenes did not fit."""
        self.count = max(1, min(self.count, scenes // 2))
        self.patience, self.good = 2 * self.patience, 0

    def fitted(self, scenes: int) -> None:
        """A batch of so many scenes did."""
        self.good += scenes >= self.count
        if self.good >= self.patience:
            self.count, self.good = self.count + 1, 0
