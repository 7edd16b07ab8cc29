"""What this machine is: versions, driver, devices, memory, and room on its disks."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import psutil  # type: ignore[import-untyped]
import torch

from consistory_ray.doctor.diagnosis import Finding, Gpu, Machine, Place
from consistory_ray.engine.machine import nvidia_driver, watched_folders
from consistory_ray.errors import StorageError
from consistory_ray.output.storage import open_output

PACKAGES = ("consistory-ray", "torch", "diffusers", "transformers", "accelerate", "ray", "triton")
SHARED_MEMORY = "/dev/shm"
"""Where Ray's object store lies."""


def examined_machine() -> Machine:
    """Look at this machine, and multiply two small matrices on each of its devices."""
    memory = psutil.virtual_memory()
    cuda, driver = torch.version.cuda or torch.version.hip or "", nvidia_driver()
    problem = _cuda_problem() if cuda else ""
    cudnn = torch.backends.cudnn.version() if cuda else None
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpus=_usable_cpus(),
        memory=memory.total,
        memory_free=memory.available,
        versions=dict(_versions()),
        cuda=cuda,
        cudnn=str(cudnn or ""),
        driver=driver,
        cuda_problem=problem,
        gpus=() if problem or not cuda else tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        shared_memory=_place(SHARED_MEMORY),
        temporary=_place(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) or Place("", 0, 0),
    )


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:  # triton, on a CPU
            continue


def _cuda_problem() -> str:
    """Why there are no devices, in the driver's words; empty if there are some."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "" if torch.cuda.device_count() else "the driver shows none"


def _gpu(index: int) -> Gpu:
    told = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
        problem = _failure(index)
    except RuntimeError as error:  # that context cannot even be made
        free, problem = 0, str(error).splitlines()[0]
    capability = f"{told.major}.{told.minor}"
    return Gpu(told.name, told.total_memory, free, capability, told.multi_processor_count, problem)


def _failure(index: int) -> str:
    """Why a small product goes wrong there; empty if it does not."""
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        return "" if bool(((ones @ ones) == 64).all()) else "a product of ones is wrong"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def _place(folder: str) -> Place | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return Place(folder, usage.total, usage.free)


def of_output(url: str) -> list[Finding]:
    """Whether a small file can be written there, read and deleted; nothing stays behind."""
    store = open_output(url)
    if store.is_local:  # no folder is made for it
        store = open_output(watched_folders(url)[-1])
    name, words = f"consistory-doctor-{uuid.uuid4().hex[:12]}.txt", b"written by consistory-ray doctor"
    try:
        store.write_atomic(name, words)
        same = store.read(name) == words
        store.delete(name)
    except StorageError as error:
        fix = "give credentials, rights or room there, or another --output"
        return [Finding("wrong", "output", str(error), fix)]
    if not same:
        return [
            Finding("wrong", "output", f"{store.url} gives back other bytes than it was given", "use another output")
        ]
    free = shutil.disk_usage(store.root).free if store.is_local else None
    room = "" if free is None else f", {free / 1e9:.0f} GB free"
    return [Finding("note", "output", f"{url} can be written to{room}")]
