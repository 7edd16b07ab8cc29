"""Starts coordinators quickly: imports all that they need once, and forks a process for each; started by ``harness``.

What a child runs is the command line's own entry point. Before the fork there is one thread of Python and no
connection, so a child differs from a fresh ``consistory-ray`` process in nothing but the seconds that imports take.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401
import ray  # noqa: F401

import consistory_ray.cli.app
import consistory_ray.engine.coordinator
import consistory_ray.engine.dispatching.dispatch
import consistory_ray.output.gallery.pages
import consistory_ray.testing
from tests.chaos.hosts import serve

FORK_SAFE = {"jemalloc_bg_thd"}  # Arrow's allocator stops and restarts its thread around a fork


def start(arguments: list[str], log: str) -> int:
    """Fork a coordinator; returns its process id."""
    threads = {Path("/proc/self/task", task, "comm").read_text().strip() for task in os.listdir("/proc/self/task")}
    if len(threads - FORK_SAFE) != 1:
        raise RuntimeError(f"other threads run here already, forking is not safe: {threads}")
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.argv = ["consistory-ray", *arguments]
    code = 99
    try:
        consistory_ray.cli.app.main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a coordinator (minus the signal that ended it), or None if it still runs after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)


def act(question: dict[str, Any]) -> dict[str, Any]:
    """Start one, or wait for one."""
    if question["do"] == "start":
        return {"pid": start(question["arguments"], question["log"])}
    return {"code": wait(question["pid"], question["seconds"])}


if __name__ == "__main__":
    serve({}, act)
