"""Whether the Ray that a run uses is still there, and what it tells of its machines meanwhile.

Of a Ray of our own its processes are watched, of a joined one the port of its head. Without its head nothing of Ray
comes back with an error by itself: calls to it wait, and Ray ends the process without a word after a minute. So this is
asked before anything that needs the head, about once a second.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from consistory_ray.engine.cluster.address import connection_refused
from consistory_ray.engine.cluster.local_ray import LocalRay
from consistory_ray.errors import ClusterLostError

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 40.0
"""How long the head of a joined cluster may be away: it may be started again elsewhere, which Ray allows for."""
PROBE_SECONDS = 2.0
GUARD_SECONDS = 5.0
HUNG_SECONDS = 30.0
EXIT_LOST = 3


class ClusterWatch:
    """Asked about once a second by the thread that runs the run.

    Args:
        local: the Ray of our own, if it is that.
        endpoint: where the head of a joined cluster answers, if that is known.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        local: LocalRay | None = None,
        endpoint: tuple[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local = local
        self._endpoint = endpoint
        self._clock = clock
        self._answered = self._looked = clock()
        self._closed = threading.Event()

    def answers(self) -> bool:
        """Whether it can be asked anything right now.

        Raises:
            ClusterLostError: it is gone, or has been away for too long.
        """
        self._looked = self._clock()
        reason = self._away()
        if not reason:
            self._answered = self._clock()
        elif self._lasts():
            raise ClusterLostError(reason, own=self._local is not None)
        return not reason

    def wait(self, seconds: float = 0.25) -> None:
        """Until it answers.

        Raises:
            ClusterLostError: it is gone, or has been away for too long.
        """
        while not self.answers():
            time.sleep(seconds)

    def node_died(self) -> None:
        """Ray says that the machine this process is connected to is dead, or that none is left of our own.

        Raises:
            ClusterLostError: always.
        """
        where = "this machine" if self._local is not None else "the node that this process is connected to"
        raise ClusterLostError(f"Ray has given {where} up", own=self._local is not None)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """While inside, end the process if it hangs in a call to a head that is gone, which nothing can interrupt."""
        threading.Thread(target=self._guard, name="cluster-guard", daemon=True).start()
        try:
            yield
        finally:
            self._closed.set()

    def _away(self) -> str:
        """Why it does not answer; empty if it does."""
        if self._local is not None:
            dead = self._local.dead()
            return f"the Ray on this machine has ended, {dead} is dead" if dead else ""
        if self._endpoint is None:
            return ""
        host, port = self._endpoint
        reason = connection_refused(host, port, PROBE_SECONDS)
        return f"the head of the Ray cluster at {host}:{port} is gone, {reason}" if reason else ""

    def _lasts(self) -> bool:
        return self._local is not None or self._clock() - self._answered > PATIENCE_SECONDS

    def _guard(self) -> None:
        since: float | None = None
        while not self._closed.wait(GUARD_SECONDS):
            now = self._clock()
            reason = self._away() if now - self._looked > GUARD_SECONDS else ""
            since = None if not reason else now if since is None else since
            if since is not None and now - since > HUNG_SECONDS and now - self._looked > HUNG_SECONDS:
                error = ClusterLostError(reason)
                _log.error("%s", error)
                print(error, file=sys.stderr, flush=True)
                if self._local is not None:
                    self._local.end_processes()
                os._exit(EXIT_LOST)


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
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def own_node_is_dead() -> bool:
    """Whether Ray takes the machine that this process is connected to for dead: nothing comes through it any more."""
    import ray

    try:
        own = own_node()
        return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    except Exception as error:
        _log.debug("Ray does not tell its nodes: %s", error)
        return False


def store_usage() -> tuple[int, int]:
    """Bytes of the cluster's object stores that are in use, and that there are; zeros if Ray does not tell."""
    import ray

    try:
        total: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free: dict[str, Any] = ray.available_resources()  # type: ignore[no-untyped-call]
    except Exception as error:
        _log.debug("Ray does not tell its resources: %s", error)
        return 0, 0
    capacity = total.get("object_store_memory", 0.0)
    return int(capacity - free.get("object_store_memory", capacity)), int(capacity)
