"""A Ray cluster of several nodes on this machine, whose nodes can be killed and replaced; started by ``harness``.

    python cluster_host.py NODES CPUS_PER_NODE

The head has no CPUs and is never killed: coordinators are connected to it. ``{"do": "kill_node"}`` ends the raylet of
a node with SIGKILL and starts another node; ``seed`` chooses which.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

TEMPORARY = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")  # short: the path of a Unix socket has 107 bytes at most
os.environ["RAY_TMPDIR"] = TEMPORARY

import psutil  # type: ignore[import-untyped] # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from tests.chaos.hosts import serve  # noqa: E402

T = TypeVar("T")

PR_SET_CHILD_SUBREAPER = 36
START_TRIES = 4
OBJECT_STORE = 80 << 20
SYSTEM = {
    # a dead node is noticed within two seconds
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
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
    psutil.wait_procs(below, 10)


def main() -> None:
    """Start the cluster, obey, stop it."""
    adopt_orphans()
    try:
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

    def add_node() -> Any:
        return patiently(lambda: cluster.add_node(num_cpus=cpus, **shared))

    started = [add_node() for _ in range(nodes)]

    def act(question: dict[str, Any]) -> dict[str, Any]:
        if question["do"] != "kill_node":
            raise ValueError(question)
        node = started.pop(random.Random(question["seed"]).randrange(len(started)))
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        raylet.process.wait()
        cluster.remove_node(node, allow_graceful=False)
        started.append(add_node())
        return {"killed": raylet.process.pid}

    serve({"address": cluster.address}, act)


if __name__ == "__main__":
    main()
