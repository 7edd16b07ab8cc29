"""Joining a Ray cluster or starting one here, and what to ask of it for each worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from consistory_ray.engine.options import Device, RunOptions
from consistory_ray.engine.stopping import keeping_signal_handlers
from consistory_ray.errors import InputError, Problem, RunError, RunInterrupted

CACHE_SHARE = 0.5
"""The part of the cluster's object store that anchor caches may take."""
START_TRIES = 3


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """How many workers to ask for, and what each gets."""

    count: int
    device: Device
    num_cpus: float
    num_gpus: float
    threads: int


@contextmanager
def joined_cluster(options: RunOptions) -> Iterator[None]:
    """Be connected to Ray while inside. Disconnects, or stops the local Ray, only if it was connected here.

    Raises:
        InputError: there is no cluster at the address.
        RunInterrupted: SIGTERM came while Ray started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        start_local_ray()
    else:
        _set_ray_environment()
        try:
            with keeping_signal_handlers(), _interruptible():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            fix = "start a cluster there (ray start --head), or leave the address out to use this machine"
            problem = Problem("address", f"{address}: {error}".splitlines()[0], fix)
            raise InputError("cannot join Ray", [problem]) from error
    try:
        yield
    finally:
        ray.shutdown()


def start_local_ray(**options: Any) -> None:
    """Start a Ray on this machine for this process, without a dashboard and without a token file in the home folder.

    Args:
        options: further arguments of ``ray.init``.

    Raises:
        RunError: Ray does not come up.
        RunInterrupted: SIGTERM came meanwhile.
    """
    import ray

    _set_ray_environment()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    for number in range(START_TRIES):
        try:
            with keeping_signal_handlers(), _interruptible():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
                )
            return
        except RunInterrupted:
            ray.shutdown()
            raise
        except Exception as error:  # on a busy machine Ray's own start-up limit of 30 s is too short, and it is bare
            ray.shutdown()
            if number + 1 == START_TRIES or "timed out during startup" not in str(error):
                raise RunError(f"Ray did not start on this machine: {str(error).strip() or repr(error)}") from error


def _set_ray_environment() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def shape_workers(options: RunOptions) -> WorkerShape:
    """What to ask the joined cluster for.

    Raises:
        InputError: CUDA was asked for and no node has a GPU.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    device = options.device if options.device != "auto" else "cuda" if gpus else "cpu"
    if device == "cuda":
        if not gpus and options.workers is None:
            fix = "use --device cpu, or say with --workers how many GPU workers the cluster may still start"
            raise InputError("the cluster has no GPU", [Problem("device", "cuda", fix)])
        count = options.workers or max(1, int(gpus / options.gpus_per_worker))
        cpus = options.cpus_per_worker or 1.0
        return WorkerShape(count, device, cpus, options.gpus_per_worker, max(1, int(cpus)))
    cores = sorted(node["CPU"] for node in nodes if node.get("CPU")) or [1.0]
    count = options.workers or len(cores)
    cpus = options.cpus_per_worker or _even_share(cores, count)
    return WorkerShape(count, device, cpus, 0.0, max(1, int(cpus)))


def default_cache_budget() -> int:
    """Bytes of anchor caches that the joined cluster's object stores carry easily."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(CACHE_SHARE * resources.get("object_store_memory", 0.0)) or 1 << 30


@contextmanager
def _interruptible() -> Iterator[None]:
    """While it runs ``ray.init`` has a handler of its own for SIGTERM, which cleans up and leaves by SystemExit."""
    try:
        yield
    except SystemExit as error:
        raise RunInterrupted("SIGTERM") from error


def _even_share(cores: Sequence[float], count: int) -> float:
    """CPUs for each of so many workers, so that all of them find a place on machines of so many cores."""
    for whole in range(int(sum(cores) / count), 0, -1):  # Ray wants whole numbers above 1
        if sum(int(there / whole) for there in cores) >= count:
            return float(whole)
    return max(0.01, int(100 * sum(cores) / count) / 100)
