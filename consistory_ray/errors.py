"""The error tree: one class for each thing a caller does next.

    ConsistoryError
    ├── InputError             fix what was given, nothing was rendered
    │   ├── JobError           a job file (all of its problems at once)
    │   ├── PromptError        a concept is missing from a prompt, or cut off by the tokenizer
    │   ├── CacheMismatchError an anchor cache of another model, other settings or another format
    │   └── CheckpointError    a model that cannot be found, loaded or used
    ├── RetryableError         the same work may succeed elsewhere or later
    │   └── StorageError       a read or write of the output URL failed
    │       └── DiskFullError  no space left there: the same command resumes once there is some
    ├── AssetError             give up on this asset, go on with the rest
    │   ├── PictureError       some pictures of a call; the others are there
    │   └── RejectedError      a check of the job found something in a picture
    └── RunError               stop the run
        ├── OutputBusyError    another run holds the output
        ├── OutageError        the output was out of reach for too long; the same command resumes once it is back
        ├── ClusterLostError   Ray ended during the run; the same command resumes it
        ├── RunInterrupted     stopped on request; the same command resumes it
        │   └── MaxCostReached by its --max-cost; going on may cost as much again
        └── RunFailed          the run ended with failed assets

Anything else that is raised is a bug, here or in a dependency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it is, what was found there, and what to do about it."""

    path: str
    value: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fix} (got {self.value})" if self.value else f"{self.path}: {self.fix}"


class ConsistoryError(Exception):
    """Base class of every error this package raises on purpose."""


class InputError(ConsistoryError):
    """What was given cannot be used; the message names the field, the value and the fix.

    Attributes:
        problems: every problem found, in the order of the input.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.problems))

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {problem}" for problem in self.problems)])


class JobError(InputError):
    """A job file that cannot be rendered as written."""


class PromptError(InputError):
    """A prompt that does not contain its subject's concepts where the text encoder can see them."""


class CacheMismatchError(InputError):
    """An anchor cache that does not belong to this model, these settings or this version of the format."""


class CheckpointError(InputError):
    """A model that cannot be found, loaded, or is not of the SDXL architecture."""


class RetryableError(ConsistoryError):
    """The same work may succeed on another worker or a little later."""


class StorageError(RetryableError):
    """Reading from or writing to the output URL failed.

    Attributes:
        lasting: whether trying again is pointless until somebody has changed something.
    """

    lasting: bool = False


class DiskFullError(StorageError):
    """There is no space left for the output, or its quota is used up; whoever tries again needs to make room first."""

    lasting = True


class AssetError(ConsistoryError):
    """This asset cannot be rendered; the rest of the run goes on."""


class RejectedError(AssetError):
    """A check that the job names found something in a picture: it is not kept."""


class PictureError(AssetError):
    """Some pictures of a call could not be made.

    Attributes:
        failures: index of a picture in the call -> what is wrong with it.
        result: what the call would have returned; in the place of such a picture is None in a list, NaN in an array.
            None where the exception was sent to another process.
    """

    def __init__(self, message: str, failures: Mapping[int, str] | None = None, result: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.failures = dict(failures or {})
        self.result = result

    @classmethod
    def of(cls, failures: Mapping[int, str], total: int, result: Any = None) -> PictureError:
        """The error of a call for ``total`` pictures; one reason for all of them is told once."""
        reasons = list(dict.fromkeys(failures.values()))
        if len(failures) == total and len(reasons) == 1:
            return cls(reasons[0], failures, result)
        return cls("; ".join(f"picture {index}: {reason}" for index, reason in failures.items()), failures, result)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.failures))


class RunError(ConsistoryError):
    """The run stops."""


class OutputBusyError(RunError):
    """Another run holds the output; the message names it, and says what to do."""


class OutageError(RunError):
    """The output was out of reach for too long; everything finished is there, and the same command goes on."""


class ClusterLostError(RunError):
    """The Ray that a run used has ended; everything finished is there, and the same command goes on.

    Attributes:
        reason: what is known of it.
        own: whether the run had started it itself.
    """

    def __init__(self, reason: str, own: bool = False) -> None:
        super().__init__(f"{reason}; everything finished is there, and the same command goes on")
        self.reason = reason
        self.own = own

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.own))


class RunInterrupted(RunError):
    """The run was asked to stop; everything finished is on storage and the same command resumes it."""


class MaxCostReached(RunInterrupted):
    """The run was stopped before it would have cost more than it may; the same command resumes it, as a new run."""


class RunFailed(RunError):
    """The run is over and some assets failed; the index lists them."""
