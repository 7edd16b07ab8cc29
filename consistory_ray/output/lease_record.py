"""The files of a lease: what one says, and which of them counts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from consistory_ray.errors import OutputBusyError, StorageError
from consistory_ray.output.processes import Process
from consistory_ray.output.storage import MissingFileError, OutputStore

LEASE_FOLDER = "lease"
MAX_TTL = 3600.0
LAST_GENERATION = 10**12 - 1
_NAME = re.compile(rf"{LEASE_FOLDER}/([0-9]{{12}})\.json")
_TRIES = 10


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
            values: dict[str, Any] = json.loads(data)
            times = {key: datetime.fromisoformat(values[key]).timestamp() for key in ("acquired_at", "renewed_at")}
            record = cls(**(values | times | {"process": Process(**values["process"])}))
            ttl = float(record.ttl_seconds)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None
        texts = (record.token, record.owner, record.process.host, record.process.machine, record.process.started)
        typed = all(isinstance(text, str) for text in texts) and isinstance(record.process.pid, int)
        return record if typed and math.isfinite(ttl) and 0 < ttl <= MAX_TTL else None


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
