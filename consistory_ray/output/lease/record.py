"""The files of a lease: what one says, and which of them counts."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from consistory_ray.errors import OutputBusyError, StorageError
from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.output.lease.processes import Process
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError

LEASE_FOLDER = "lease"
MAX_TTL = 3600.0
LAST_GENERATION = 10**12 - 1
_NAME = re.compile(rf"{LEASE_FOLDER}/([0-9]{{12}})\.json")
_TRIES = 10
_LIMITS = Limits(bytes=64 << 10, values=1000, depth=4)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a lease file says.

    Attributes:
        token: unique to one acquisition.
        owner: who holds it, for people.
        process: where it runs.
        acquired_at, renewed_at: seconds since 1970 by the holder's wall clock.
        ttl_seconds: how long a renewal is good for.
        beat: number of the renewal, so that every one changes the file.
        released: whether the holder has given it back.
    """

    token: str
    owner: str
    process: Process
    acquired_at: float
    renewed_at: float
    ttl_seconds: float
    beat: int = 0
    released: bool = False

    def encode(self) -> bytes:
        """The bytes of the file."""
        values = asdict(self) | {key: _text(getattr(self, key)) for key in ("acquired_at", "renewed_at")}
        return (json.dumps(values, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> LeaseRecord | None:
        """The inverse; None when these are no bytes of a lease."""
        try:
            found = _Stored.model_validate(parse_json(data, _LIMITS))
        except ValueError:
            return None
        return cls(**{**dict(found), "process": Process(**dict(found.process))})


def _seconds(text: str) -> float:
    when = datetime.fromisoformat(text)
    if not 1970 < when.year < 9999:
        raise ValueError("no year in which there could be a lease")
    return when.timestamp()


_Time = Annotated[float, BeforeValidator(lambda text: _seconds(text) if isinstance(text, str) else None)]
_Text = Annotated[str, Field(max_length=10_000)]


class _StoredProcess(BaseModel):
    """The fields of a process as a lease file has to hold them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    host: _Text
    machine: _Text
    pid: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    started: _Text


class _Stored(BaseModel):
    """The fields of a lease as its file has to hold them."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    token: _Text
    owner: _Text
    process: _StoredProcess
    acquired_at: _Time
    renewed_at: _Time
    ttl_seconds: Annotated[float, Field(gt=0, le=MAX_TTL)]
    beat: int = 0
    released: bool = False


@dataclass(frozen=True, slots=True)
class SeenLease:
    """The lease file that counts: its generation (0: there is none), its bytes, and what they say."""

    generation: int
    data: bytes = b""
    record: LeaseRecord | None = None

    @property
    def is_free(self) -> bool:
        """Whether nobody holds it: it never was taken, or was given back."""
        return self.generation == 0 or (self.record is not None and self.record.released)


def look(store: OutputStore) -> SeenLease:
    """The lease file of the highest generation.

    Raises:
        StorageError: the storage failed.
    """
    for _ in range(_TRIES):
        generation = max(generations(store), default=0)
        if not generation:
            return SeenLease(0)
        try:
            data = store.read(lease_path(generation))
        except MissingFileError:  # a later generation has come and tidied up
            continue
        except UnfitFileError as error:  # far too large to be one, or no file any more: it cannot be understood
            data = str(error).encode()
        return SeenLease(generation, data, LeaseRecord.decode(data))
    raise StorageError(f"the lease at {store.url}/{LEASE_FOLDER} keeps changing while it is read")


def generations(store: OutputStore) -> list[int]:
    """The generations there are files of, in no order. Whatever else lies in the folder counts for nothing."""
    names = (_NAME.fullmatch(file.path) for file in store.list_files(LEASE_FOLDER))
    return [int(name[1]) for name in names if name and not store.is_obstructed(name[0])]


def generation_after(store: OutputStore, generation: int) -> int:
    """The next generation whose name is free for a file; 0 when there is none, since the last name is taken.

    Something that is no file may lie in a lease's place. It is passed over, not touched.
    """
    following = generation + 1
    while following <= LAST_GENERATION and store.is_obstructed(lease_path(following)):
        following += 1
    return following if following <= LAST_GENERATION else 0


def lease_path(generation: int) -> str:
    """Where the lease file of a generation lies."""
    return f"{LEASE_FOLDER}/{generation:012d}.json"


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def describe(record: LeaseRecord) -> str:
    """Who holds a lease, where, and since when."""
    process = record.process
    return f"{record.owner} (host {process.host}, process {process.pid}, since {_text(record.acquired_at)[:19]} UTC)"


def busy(store: OutputStore, holder: LeaseRecord | None) -> OutputBusyError:
    """The refusal of another run."""
    who = describe(holder) if holder is not None else "another run"
    advice = "wait for it or stop it, or render into another output; a dead run's lease is taken over by itself"
    renewed = f", last heard of at {_text(holder.renewed_at)[:19]} UTC" if holder is not None else ""
    return OutputBusyError(f"{store.url} is held by {who}{renewed}: {advice}")
