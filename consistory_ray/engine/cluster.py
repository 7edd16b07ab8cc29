"""Joining a Ray cluster or starting one here, and what to ask of it for each worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from consistory_ray.engine.address import LOCAL, cannot_join, check_address, endpoint_of, ray_address
from consistory_ray.engine.cluster_watch import ClusterWatch
from consistory_ray.engine.local_ray import ray_environment, start_local_ray
from consistory_ray.engine.options import Device, RunOptions
from consistory_ray.engine.stopping import interruptible, keeping_signal_handlers
from consistory_ray.errors import InputError, Problem

CACHE_SHARE = 0.5
"""The part of the cluster's object store that anchor caches may take."""
RECONNECT_SECONDS = "600"
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """How many workers to ask for, and what each gets."""

    count: int
    device: Device
    num_cpus: float
    num_gpus: float
    threads: int


@contextmanager
def joined_cluster(options: RunOptions) -> Iterator[ClusterWatch]:
    """Be connected to Ray while inside. Disconnects, or stops the local Ray, only if it was connected here.

    Yields:
        What tells whether it is still there.

    Raises:
        InputError: there is no cluster at the address.
        RunInterrupted: SIGTERM came while Ray started.
        RunError: Ray does not start on this machine.
    """
    import ray

    if ray.is_initialized():
        yield from _watched(ClusterWatch(endpoint=_own_endpoint()))
        return
    address = ray_address(options.address)
    if address == LOCAL:
        local = start_local_ray()
        try:
            yield from _watched(ClusterWatch(local))
        finally:
            local.stop()
        return
    check_address(options.address)
    try:
        # Ray ends a process whose head is away for longer than this; how long a run waits is said elsewhere
        patience = {} if _RECONNECT in os.environ else {_RECONNECT: RECONNECT_SECONDS}
        with ray_environment(**patience), keeping_signal_handlers(), interruptible():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        field = "address" if options.address else "RAY_ADDRESS"
        raise cannot_join(field, address, _reason(error)) from error
    try:
        yield from _watched(ClusterWatch(endpoint=endpoint_of(address)))
    finally:
        ray.shutdown()


def _watched(watch: ClusterWatch) -> Iterator[ClusterWatch]:
    with watch.guarding():
        yield watch


def _own_endpoint() -> tuple[str, int] | None:
    """Where the head of the cluster is that this process has joined before."""
    import ray

    try:
        return endpoint_of(str(ray.get_runtime_context().gcs_address))
    except Exception:  # a Ray client does not know
        return None


def _reason(error: Exception) -> str:
    """What went wrong while joining, in a line."""
    reasons = [str(error), str(error.__cause__ or "")]
    if any(word in reason for reason in reasons for word in ("InvalidAuthToken", "authentication", "Unauthenticated")):
        return "it asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
    return (str(error).strip() or repr(error)).splitlines()[0]


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


def _even_share(cores: Sequence[float], count: int) -> float:
    """CPUs for each of so many workers, so that all of them find a place on machines of so many cores."""
    for whole in range(int(sum(cores) / count), 0, -1):  # Ray wants whole numbers above 1
        if sum(int(there / whole) for there in cores) >= count:
            return float(whole)
    return max(0.01, int(100 * sum(cores) / count) / 100)
