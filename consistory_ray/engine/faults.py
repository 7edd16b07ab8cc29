"""What goes wrong in a run, and what is done about it: one table, and one cap for each way of trying again.

An exception is looked up by the names of its classes, most derived first, so that this module (like the scheduler
that obeys it) needs neither Ray nor torch. A test checks that every name in the table is a real class.
"""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass, fields
from enum import Enum

from consistory_ray.errors import ConsistoryError, InputError, Problem, StorageError
from consistory_ray.guards.redaction import redacted


class Fault(str, Enum):
    """What an exception means for the work it interrupted."""

    WORKER_DIED = "worker-died"
    """The worker's process is gone. Its assets are tried again one at a time, alone on a worker; it is replaced."""
    NODE_DIED = "node-died"
    """The machine is gone, which no asset is suspected of. Its assets are tried again; the worker is replaced."""
    BROKEN = "broken"
    """The worker's device or machine is at fault: it says so itself, or call after call fails there. It is replaced;
    the assets it had are tried again one at a time, alone on a worker."""
    STUCK = "stuck"
    """The worker has shown no progress for far longer than its calls take. It is killed; then as if it had died."""
    STORE_FULL = "store-full"
    """The object store has no room for another anchor cache: fewer are kept alive, the work is tried again later."""
    OUT_OF_MEMORY = "out-of-memory"
    """The batch was too large for the device: smaller batches. Only a single asset that does not fit is at fault."""
    ANCHORS_LOST = "anchors-lost"
    """No copy of the subject's anchor cache is left in memory: it is read from the run's URL, or made again."""
    STORAGE = "storage"
    """The output could not be read or written, after several tries: tried again elsewhere, then the run stops,
    and comes back once it can, see :mod:`consistory_ray.engine.outages`."""
    BAD_ASSET = "bad-asset"
    """This asset can never be rendered: it fails at once."""
    REJECTED = "rejected"
    """A check of the job found something in the picture: it is not kept, and not made again unless somebody retries."""
    ERROR = "error"
    """Anything else: tried once more, on another worker where there is one, then the asset fails."""
    BAD_MODEL = "bad-model"
    """The model cannot be loaded or used by any worker: the run stops."""
    DISK_FULL = "disk-full"
    """No space left for the output: the run stops before anything is half-written."""

    @property
    def kills_worker(self) -> bool:
        """Whether the worker that reported it is gone and has to be replaced."""
        return self in (Fault.WORKER_DIED, Fault.NODE_DIED, Fault.STUCK, Fault.BROKEN)

    @property
    def blames_assets(self) -> bool:
        """Whether the assets that the worker had are suspected of having taken it down."""
        return self in (Fault.WORKER_DIED, Fault.STUCK, Fault.BROKEN)

    @property
    def stops_run(self) -> bool:
        """Whether trying anything else would be pointless."""
        return self in (Fault.BAD_MODEL, Fault.DISK_FULL)


@dataclass(frozen=True, slots=True)
class Caps:
    """How often something may be tried before it is given up.

    Attributes:
        attempts: attempts of an asset (or of a subject's anchors) that may end in an error.
        crashes: workers that an asset may take down, or hang, while it is alone on them.
        storage_attempts: attempts of an asset that may end in a storage error before the run stops.
        cache_losses: times that a subject's anchor cache may be lost, or find no room, without one success in between,
            before its scenes fail.
        killers: assets of one subject that may be found to take workers down, without one success in between, before
            the subject's other scenes fail as well, instead of costing two workers each.
        failing: the same for assets that fail for other reasons.
        worker_deaths: deaths in a row, without a finished call in between, after which a worker is not replaced for
            ``exhausted_seconds``; a machine that went away is no death, nor is one that its asset failed for.
        worker_errors: calls in a row that may fail on a worker, of more than one subject or twice as many of one,
            before it is taken for broken and replaced.
        exhausted_seconds: after that long a worker that died too often is asked for again.
        failures_in_a_row: assets of at least ``failing_subjects`` subjects that may fail without a single success in
            between, before the run stops: then it is not the assets.
        failing_subjects: see there.
        saves: tries of writing an anchor cache.

    Raises:
        InputError: one of them is below 1, or two of them work against each other.
    """

    attempts: int = 2
    crashes: int = 2
    storage_attempts: int = 3
    cache_losses: int = 5
    killers: int = 3
    failing: int = 10
    worker_deaths: int = 5
    worker_errors: int = 4
    exhausted_seconds: float = 900.0
    failures_in_a_row: int = 100
    failing_subjects: int = 3
    saves: int = 3

    def __post_init__(self) -> None:
        checks = [(item.name, getattr(self, item.name) >= 1, "give a number from 1") for item in fields(self)]
        checks += [
            # An asset that kills takes its worker down once in a batch and crashes - 1 times alone before the crash
            # that convicts it and acquits them: a run's only worker has to be replaced for so long.
            ("worker_deaths", self.worker_deaths > self.crashes, f"give more than crashes, {self.crashes}"),
            # One that fails does so once in its batch and then attempts times by itself: no worker is broken for that.
            (
                "worker_errors",
                2 * self.worker_errors > self.attempts + 1,
                f"give more than half of attempts + 1, {self.attempts + 1}",
            ),
            # A subject is found hopeless before the run is, and the run only once so many subjects can have failed.
            (
                "failures_in_a_row",
                self.failures_in_a_row >= max(self.failing, self.failing_subjects),
                f"give at least failing and failing_subjects, {max(self.failing, self.failing_subjects)}",
            ),
        ]
        problems = [Problem(f"caps.{name}", repr(getattr(self, name)), fix) for name, good, fix in checks if not good]
        if problems:
            raise InputError("these caps cannot be used", problems)


TABLE: dict[str, Fault] = {
    "ray.exceptions.NodeDiedError": Fault.NODE_DIED,
    "ray.exceptions.GetTimeoutError": Fault.NODE_DIED,  # a finished call's report that cannot be fetched
    "ray.exceptions.LocalRayletDiedError": Fault.NODE_DIED,
    "consistory_ray.errors.RunInterrupted": Fault.NODE_DIED,  # the worker was told to leave and refused the call
    "ray.exceptions.ActorUnavailableError": Fault.WORKER_DIED,
    "ray.exceptions.ActorDiedError": Fault.WORKER_DIED,
    "ray.exceptions.RayActorError": Fault.WORKER_DIED,
    "ray.exceptions.WorkerCrashedError": Fault.WORKER_DIED,
    "ray.exceptions.OutOfMemoryError": Fault.WORKER_DIED,  # Ray killed the process: host memory, not the device's
    "ray.exceptions.ActorUnschedulableError": Fault.WORKER_DIED,
    "ray.exceptions.OwnerDiedError": Fault.ANCHORS_LOST,
    "ray.exceptions.ObjectLostError": Fault.ANCHORS_LOST,
    "ray.exceptions.ObjectFetchTimedOutError": Fault.ANCHORS_LOST,
    "ray.exceptions.RaySystemError": Fault.WORKER_DIED,
    "ray.exceptions.ReferenceCountingAssertionError": Fault.ANCHORS_LOST,
    "ray.exceptions.ObjectStoreFullError": Fault.STORE_FULL,
    "ray.exceptions.OutOfDiskError": Fault.STORE_FULL,  # of the machine, where Ray spills to; not of the output
    "torch.OutOfMemoryError": Fault.OUT_OF_MEMORY,
    "torch.AcceleratorError": Fault.BROKEN,  # illegal access, ECC, Xid: nothing works in this process any more
    "builtins.MemoryError": Fault.OUT_OF_MEMORY,
    "consistory_ray.errors.DiskFullError": Fault.DISK_FULL,
    "consistory_ray.errors.StorageError": Fault.STORAGE,
    "consistory_ray.errors.CheckpointError": Fault.BAD_MODEL,
    "consistory_ray.errors.InputError": Fault.BAD_ASSET,
    "consistory_ray.errors.RejectedError": Fault.REJECTED,
    "consistory_ray.errors.AssetError": Fault.BAD_ASSET,
}

_LASTING = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_CUDA_ERROR = "CUDA error"
_NODE_DEATH = "its node has died"  # how Ray words an ActorDiedError that is the machine's fault


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as plain data: it crosses process boundaries whatever the exception was made of.

    Attributes:
        fault: what it means.
        kind: the exception's class name.
        message: its message on one or more lines, without the traceback and without secrets.
        traceback: where it was raised, for the log; empty when it came from Ray.
        lasting: whether it is a storage error that does not go away by itself, see :func:`is_lasting`.
    """

    fault: Fault
    kind: str
    message: str
    traceback: str = ""
    lasting: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception. Errors of a Ray task are described by their cause."""
        cause = getattr(error, "cause", None)
        if type(error).__name__.startswith("RayTaskError") and isinstance(cause, BaseException):
            error = cause
        ours = isinstance(error, ConsistoryError)
        trace = "" if ours else "".join(traceback.format_exception(type(error), error, error.__traceback__))
        lasting = isinstance(error, StorageError) and is_lasting(error)
        return cls(classify(error), type(error).__name__, redacted(_message(error)), redacted(trace), lasting)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


def classify(error: BaseException) -> Fault:
    """What an exception means for a run; whatever is not in the table is :attr:`Fault.ERROR`.

    "No space left" is a full output only if it comes from a StorageError: a worker's own disk is not the output's.
    """
    reason: BaseException | None = error if isinstance(error, StorageError) else None
    while reason is not None:
        if isinstance(reason, OSError) and reason.errno in _NO_SPACE:
            return Fault.DISK_FULL
        reason = reason.__cause__
    if getattr(error, "preempted", False) or _NODE_DEATH in str(error):
        return Fault.NODE_DIED
    if isinstance(error, RuntimeError) and str(error).startswith(_CUDA_ERROR) and "out of memory" not in str(error):
        return Fault.BROKEN  # torch before 2.8 had no class of its own for it
    for base in type(error).__mro__:
        fault = TABLE.get(f"{base.__module__}.{base.__qualname__}")
        if fault is not None:
            return fault
    return Fault.ERROR


def is_lasting(error: StorageError) -> bool:
    """Whether trying again is pointless until somebody has changed something: permissions, space, a damaged file."""
    cause = error.__cause__
    lasting = error.lasting or (isinstance(cause, OSError) and cause.errno in _LASTING)
    return lasting or classify(error) is not Fault.STORAGE


def _message(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    # Ray appends a page of advice to its errors; the first lines say what happened.
    return "\n".join(lines[:3]) if type(error).__module__.startswith("ray.") else "\n".join(lines)
