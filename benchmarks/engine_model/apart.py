"""Running a measurement in a fresh process, so that its CPU time and peak memory are its own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Meter:
    """What happened since it was started, in this process.

    ``cpu`` and ``wall`` are in seconds; ``peak`` is the largest resident set of the process since then, in bytes, all
    that was there before included.
    """

    cpu: float = 0.0
    wall: float = 0.0
    peak: int = 0

    def __enter__(self) -> Meter:
        # resets the peak; not possible everywhere, and then the peak is that of the process's whole life
        if os.access("/proc/self/clear_refs", os.W_OK):
            Path("/proc/self/clear_refs").write_text("5")
        self.cpu, self.wall = -time.process_time(), -time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()
        self.peak = peak_memory()


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status does not tell the peak of the resident set (VmHWM)")


def apart(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """``function``'s result, from a new interpreter that ends afterwards; everything has to be picklable."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()
