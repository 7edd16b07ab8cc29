"""Joining a Ray cluster or starting one here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from consistory_ray.engine.cluster.address import LOCAL, cannot_join, check_address, endpoint_of, ray_address
from consistory_ray.engine.cluster.cluster_watch import ClusterWatch
from consistory_ray.engine.cluster.local_ray import ray_environment, start_local_ray
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.stopping import interruptible, keeping_signal_handlers

RECONNECT_SECONDS = "600"
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"


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
