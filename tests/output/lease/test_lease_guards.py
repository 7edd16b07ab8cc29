"""What must not get two holders into one output, nor lock one for ever: odd storages, odd names, odd clocks."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from consistory_ray.errors import InputError, OutputBusyError
from consistory_ray.output.lease.holders import CLOCK, current_lease
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.storage import OutputStore


class Overwriting(MemoryFileSystem):
    """Takes the condition and does not hold to it, as drivers did that were older than conditional writes."""

    protocol = "overwriting"
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **given: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **given)


def test_a_storage_that_creates_twice_is_refused() -> None:
    store = OutputStore(Overwriting(), f"/{uuid.uuid4().hex}")
    with pytest.raises(InputError, match=r"two runs could hold it at once[^$]*the last bytes won"):
        Lease.acquire(store, "first")
    assert current_lease(store) is None, "nothing is left that a sound storage would have to wait for"


def released(folder: Path, name: str) -> None:
    """A lease of that name which its holder gave back."""
    with Lease.acquire(str(folder), "earlier"):
        pass
    (written,) = (folder / "lease").glob("*.json")
    written.rename(folder / "lease" / name)


def as_folder(path: Path) -> None:
    path.mkdir(parents=True)


def as_link(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to("/nowhere/at/all")


def as_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    "name",
    [
        "999999999999.json",
        "1000000000000.json",
        "9" * 40 + ".json",
        "-00000000001.json",
        "latest.json",
        "١٢٣٤٥٦٧٨٩٠١٢.json",
    ],
)
def test_odd_names_lock_nobody_out(tmp_path: Path, name: str) -> None:
    released(tmp_path, name)
    for owner in ("second", "third"):
        with Lease.acquire(str(tmp_path), owner) as lease:
            assert lease.renew()
            with pytest.raises(OutputBusyError):
                Lease.acquire(str(tmp_path), "intruder")


@pytest.mark.parametrize("make", [as_folder, as_link, as_pipe])
@pytest.mark.parametrize("name", ["000000000001.json", "999999999999.json"])
def test_what_is_no_file_is_no_lease(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / "lease" / name)
    with Lease.acquire(str(tmp_path), "first") as lease:
        assert lease.renew()
        with pytest.raises(OutputBusyError):
            Lease.acquire(str(tmp_path), "second")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_living_process_of_this_machine_keeps_its_lease_whatever_the_clock_says(tmp_path: Path, hours: int) -> None:
    with Lease.acquire(str(tmp_path), "first", ttl_seconds=1.0) as first:
        wrong = dataclasses.replace(CLOCK, wall=lambda: CLOCK.wall() + hours * 3600)

        def renewing(message: str) -> None:
            assert first.renew()

        with pytest.raises(OutputBusyError):
            Lease.acquire(str(tmp_path), "second", ttl_seconds=1.0, clock=wrong, on_wait=renewing)
        assert first.renew() and not first.lost
