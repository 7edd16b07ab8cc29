"""Which process on which machine wrote something, and whether it still runs, as far as this machine can tell."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process, recognisable among all that ever were.

    Attributes:
        host: the machine's name, for people; names repeat, so it proves nothing.
        machine: this start of the machine and this process namespace (a container has its own); empty when unknown.
        pid: its number there.
        started: when it started, in the machine's ticks, since numbers are used again; empty when unknown.
    """

    host: str
    machine: str
    pid: int
    started: str


def this_process() -> Process:
    """The process that asks."""
    return _this_process(os.getpid())


def is_gone(process: Process) -> bool:
    """Whether ``process`` certainly does not run any more: it was of this machine, and is not there."""
    if not _is_known(process):
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's: /proc may hide whether it is there
        return False
    started = _started(process.pid)
    return started is not None and started != process.started


def is_running(process: Process) -> bool:
    """Whether ``process`` certainly runs: it is of this machine, and is there."""
    return _is_known(process) and _started(process.pid) == process.started


def shares_boot(one: Process, other: Process) -> bool:
    """Whether both are of the same start of the same machine, perhaps in different containers: they have one clock."""
    boots = [process.machine.partition("/")[0] for process in (one, other)]
    return bool(boots[0]) and boots[0] == boots[1]


def _is_known(process: Process) -> bool:
    return bool(process.machine and process.started) and process.machine == this_process().machine and process.pid > 0


@lru_cache(maxsize=2)
def _this_process(pid: int) -> Process:  # by number: a forked child is another process
    return Process(socket.gethostname(), _machine(), pid, _started(pid) or "")


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> str | None:
    """The start time of a process, ``"ended"`` if it only waits to be reaped; None when that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return "ended" if state in "ZX" else fields[18]
