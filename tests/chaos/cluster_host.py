"""A Ray cluster of several nodes on this machine, whose nodes can be killed and replaced; started by ``harness``.

    python cluster_host.py NODES CPUS_PER_NODE

The head has no CPUs and is never killed: coordinators are connected to it. Of the other nodes ``seed`` chooses one (or
``pid``, of one of its workers):

* ``{"do": "kill_node"}`` ends its raylet with SIGKILL, ``{"do": "terminate_node"}`` with SIGTERM, which Ray takes for a
  request to shut down in order. Another node takes its place unless ``replace`` is false. The answer has the ``pids``
  that were the raylet's children.
* ``{"do": "drain_node", "seconds": ...}`` says that it will be preempted then, and starts another one. Ray ends a
  drained node once it is idle; ``{"do": "remove_drained"}`` kills those that are left.
* ``{"do": "add_node"}`` starts one more.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

TEMPORARY = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")  # short: the path of a Unix socket has 107 bytes at most
os.environ["RAY_TMPDIR"] = TEMPORARY

import psutil  # type: ignore[import-untyped] # noqa: E402
from ray._raylet import GcsClient  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.core.generated import autoscaler_pb2  # noqa: E402

from consistory_ray.engine.cluster.local_ray import patience_with_nodes  # noqa: E402
from tests.chaos.hosts import serve  # noqa: E402

T = TypeVar("T")

PR_SET_CHILD_SUBREAPER = 36
START_TRIES = 4
OBJECT_STORE = 80 << 20
SYSTEM = {
    # a dead node is noticed within two seconds: nobody answers; the slow answer of a crowded machine is waited for
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,
}


def patiently(start: Callable[[], T]) -> T:
    """Start something of Ray's; on a busy machine its own limit of 30 s may be too short."""
    for _ in range(START_TRIES - 1):
        try:
            return start()
        except Exception as error:  # Ray raises a bare one
            if "timed out during startup" not in str(error):
                raise
    return start()


def adopt_orphans() -> None:
    """Whatever the dead leave behind becomes a child of this process, so that :func:`end_all` finds it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all() -> None:
    """SIGKILL for every process below this one."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(below, 60)


def children(node: Any) -> list[int]:
    """The processes of a node's workers, among others."""
    (raylet,) = node.all_processes["raylet"]
    return [process.pid for process in psutil.Process(raylet.process.pid).children()]


def end_raylet(node: Any, number: signal.Signals) -> None:
    """Send a signal to a node's raylet and wait until it is gone."""
    (raylet,) = node.all_processes["raylet"]
    os.kill(raylet.process.pid, number)
    raylet.process.wait()


def drain(address: str, node_id: str, seconds: float) -> None:
    """What ``ray drain-node`` does: tell the cluster that a machine will be taken away."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + seconds) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "the test", deadline)
    if not accepted:
        raise RuntimeError(f"the node is not drained: {why}")


def main() -> None:
    """Start the cluster, obey, stop it."""
    adopt_orphans()
    try:
        with patience_with_nodes():
            run(int(sys.argv[1]), float(sys.argv[2]))
    finally:
        end_all()
        shutil.rmtree(TEMPORARY, ignore_errors=True)


def run(nodes: int, cpus: float) -> None:
    """Start the cluster and obey."""
    shared: dict[str, Any] = {
        "object_store_memory": OBJECT_STORE,
        "include_dashboard": False,
        "include_log_monitor": False,
        "no_monitor": True,  # of the autoscaler
    }
    head = shared | {"num_cpus": 0, "_system_config": SYSTEM}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))

    started: list[Any] = []
    draining: list[Any] = []

    def add_node() -> None:
        started.append(patiently(lambda: cluster.add_node(num_cpus=cpus, **shared)))

    for _ in range(nodes):
        add_node()

    def choose(seed: int, pid: int = 0) -> Any:
        its = [number for number, node in enumerate(started) if pid and pid in children(node)]
        return started.pop(its[0] if its else random.Random(seed).randrange(len(started)))

    def act(question: dict[str, Any]) -> dict[str, Any]:
        what, pids = question["do"], list[int]()
        if what in ("kill_node", "terminate_node"):
            node = choose(question["seed"], question.get("pid", 0))
            pids = children(node)
            end_raylet(node, signal.SIGKILL if what == "kill_node" else signal.SIGTERM)
            cluster.remove_node(node, allow_graceful=False)
        elif what == "drain_node":
            draining.append(choose(question["seed"]))
            drain(cluster.address, draining[-1].node_id, question["seconds"])
        elif what == "remove_drained":
            while draining:
                cluster.remove_node(draining.pop(), allow_graceful=False)
        elif what != "add_node":
            raise ValueError(question)
        if what != "remove_drained" and question.get("replace", True):
            add_node()
        return {"pids": pids}

    serve({"address": cluster.address}, act)


if __name__ == "__main__":
    main()
