"""What Ray tells about the cluster's machines while a run goes on."""

from __future__ import annotations

import logging
from typing import Any

import ray

_log = logging.getLogger(__name__)


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are about to go: spot notices, scaling down, ``ray drain-node``."""
    try:
        from ray._private.state import state  # what Ray Train reads; there is no public name for it yet

        return frozenset(state.get_draining_nodes())
    except Exception as error:  # an older or newer Ray: workers are then only told by SIGTERM
        _log.debug("Ray does not tell which nodes are draining: %s", error)
        return frozenset()


def own_node() -> str:
    """The id of the node that this process runs on; empty outside Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def own_node_is_dead() -> bool:
    """Whether Ray takes the machine that this process is connected to for dead: nothing comes through it any more."""
    try:
        own = own_node()
        return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    except Exception as error:
        _log.debug("Ray does not tell its nodes: %s", error)
        return False


def store_usage() -> tuple[int, int]:
    """Bytes of the cluster's object stores that are in use, and that there are; zeros if Ray does not tell."""
    try:
        total: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free: dict[str, Any] = ray.available_resources()  # type: ignore[no-untyped-call]
    except Exception as error:
        _log.debug("Ray does not tell its resources: %s", error)
        return 0, 0
    capacity = total.get("object_store_memory", 0.0)
    return int(capacity - free.get("object_store_memory", capacity)), int(capacity)
