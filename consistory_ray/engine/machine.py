"""What a machine says about itself: its GPUs (through NVML, where pynvml is installed) and its disk."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from consistory_ray.guards.places import place_of

SECONDS_BETWEEN_READINGS = 10.0
_DRIVER_FILE = "/proc/driver/nvidia/version"


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment.

    Attributes:
        index: as NVML counts.
        memory_used, memory_size: bytes, of all processes on it.
        utilization: share of the last sample period in which it computed, 0 to 1; None where NVML does not tell (MIG).
    """

    index: str
    memory_used: int
    memory_size: int
    utilization: float | None


@dataclass(frozen=True, slots=True)
class MachineReading:
    """One machine at one moment.

    Attributes:
        node: its host name.
        gpus: those that can be seen; empty without NVML.
        disk_free, disk_size: bytes, of the fullest of the disks asked about; 0 if none exists.
    """

    node: str
    gpus: tuple[GpuReading, ...]
    disk_free: int
    disk_size: int


def read_machine(folders: Iterable[str]) -> MachineReading:
    """Read this machine.

    Args:
        folders: where its disks are written to; those that do not exist are left out.
    """
    disks = [usage for folder in folders if (usage := _disk(folder)) is not None]
    fullest = min(disks, key=lambda usage: usage.free / max(1, usage.total), default=None)
    free, size = (fullest.free, fullest.total) if fullest is not None else (0, 0)
    return MachineReading(socket.gethostname(), read_gpus(), free, size)


class MachineWatch:
    """Reads this machine now and again.

    Args:
        folders: where its disks are written to.
        read: reads it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folders: Iterable[str],
        read: Callable[[Iterable[str]], MachineReading] = read_machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = tuple(folders)
        self._read = read
        self._clock = clock
        self._last: float | None = None

    def reading(self) -> MachineReading | None:
        """A fresh reading, or None if the last one is less than 10 s old."""
        now = self._clock()
        if self._last is not None and now - self._last < SECONDS_BETWEEN_READINGS:
            return None
        self._last = now
        return self._read(self._folders)


def watched_folders(url: str) -> tuple[str, ...]:
    """Folders of this machine that a run writes to: Ray's, and the output if it is local."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    place = place_of(url)
    return (temporary, _existing(place.path)) if place.is_local else (temporary,)


def _existing(path: str) -> str:
    """The innermost folder of a path that is there."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def read_gpus() -> tuple[GpuReading, ...]:
    """Every GPU that NVML shows here; empty without NVML, a driver or a GPU."""
    nvml = _nvml()
    if nvml is None:
        return ()
    readings = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError:
            continue  # a GPU that fell off the bus, or that this container may not see
        readings.append(GpuReading(str(index), int(memory.used), int(memory.total), _utilization(nvml, handle)))
    return tuple(readings)


def _utilization(nvml: Any, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except nvml.NVMLError:
        return None


def nvidia_driver() -> str:
    """Version of the driver of this machine's NVIDIA GPUs; empty without one."""
    nvml = _nvml()
    if nvml is not None:
        try:
            told = nvml.nvmlSystemGetDriverVersion()
            return told.decode() if isinstance(told, bytes) else str(told)
        except nvml.NVMLError:
            return ""
    try:
        with open(_DRIVER_FILE) as file:
            found = re.search(r"\d+\.\d+(?:\.\d+)?", file.readline())
    except OSError:
        return ""
    return found[0] if found else ""


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """The initialised library, or None where there is none."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _disk(folder: str) -> Any:
    try:
        return shutil.disk_usage(folder)
    except OSError:
        return None
