"""Joining a Ray cluster or starting one here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.placement import WorkerShape, shape_workers
from consistory_ray.engine.stopping import keeping_signal_handlers
from consistory_ray.errors import InputError, Problem, RunError, RunInterrupted

START_TRIES = 3

__all__ = ["WorkerShape", "joined_cluster", "shape_workers", "start_local_ray"]


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


@contextmanager
def _interruptible() -> Iterator[None]:
    """While it runs ``ray.init`` has a handler of its own for SIGTERM, which cleans up and leaves by SystemExit."""
    try:
        yield
    except SystemExit as error:
        raise RunInterrupted("SIGTERM") from error
