"""A Ray of our own on this machine: with a key that nobody else has, watched, and ended with all it started.

Ray listens on every address of the machine. So whatever the environment says, a Ray that is started here asks for a
token: a fresh random one, which only its own processes are given. It is in no file and in no command line, and this
process's own variables are as before once Ray is up.
"""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from consistory_ray.engine.stopping import interruptible, keeping_signal_handlers
from consistory_ray.errors import RunError, RunInterrupted

START_TRIES = 3
START_SECONDS = 150
"""How long a new node may take until it is known, in place of Ray's 30 s."""
END_SECONDS = 10.0
"""How long processes that were killed may take to be gone."""
TOKEN_BYTES = 32
ESSENTIAL = ("gcs_server", "raylet")
"""Without one of these nothing goes on, and Ray does not start it again."""
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Compute threads that wait for each other sleep instead of spinning: beside other busy processes spinning takes the
core from the thread that is waited for. Read when torch is imported."""
_PACKAGE = f"{os.sep}ray{os.sep}"
_LIMITS = {
    "RAY_gcs_server_port_wait_time_s": str(START_SECONDS),
    "RAY_agent_register_timeout_ms": str(1000 * START_SECONDS),
}
_LISTENING = "dashboard_agent_listen_port"
_AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", _LISTENING)
_PORTS = range(20_000, 32_000)
"""Above those of Ray's workers, below those that the kernel hands out."""
_CHOICES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class LocalRay:
    """The Ray of one :func:`start_local_ray`.

    Attributes:
        environment: what a process needs in its environment to be let in.
    """

    def __init__(self, token: str, before: Collection[psutil.Process]) -> None:
        self.environment: Mapping[str, str] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        self._before = frozenset(before)
        self._token = token
        self._processes = tuple(self._below())
        self._essential = [process for process in self._processes if _name(process) in ESSENTIAL]

    def dead(self) -> str:
        """The name of a process without which this Ray is of no use and that has ended; empty while there is none."""
        return next((_name(process) or "Ray" for process in self._essential if not _lives(process)), "")

    def stop(self) -> None:
        """Leave it, and end every process of it, whatever state it is in. May be called again."""
        import ray

        if self.dead():  # what is left of it would be waited for in vain
            self.end_processes()
        try:
            ray.shutdown()
        finally:
            self.end_processes()
            _forget_token()

    def end_processes(self) -> None:
        """SIGKILL for all of them, and wait until they are gone."""
        orphans = [process for process in psutil.process_iter() if self._has_token(process)]
        self._processes = tuple({*self._processes, *self._below(), *orphans})
        _end(self._processes)

    def _below(self) -> Sequence[psutil.Process]:
        """Processes below this one that belong to it."""
        new = [process for process in _processes_below() if process not in self._before]
        return [process for process in new if self._has_token(process) or self._is_below_raylet(process)]

    def _has_token(self, process: psutil.Process) -> bool:
        """Whether it was started for this Ray, and is no process that a thread of ours has started meanwhile."""
        with suppress(psutil.Error):
            if process.environ().get("RAY_AUTH_TOKEN") == self._token:
                words = process.cmdline()
                return bool(words) and (words[0].startswith("ray::") or any(_PACKAGE in word for word in words))
        return False

    def _is_below_raylet(self, process: psutil.Process) -> bool:
        """Some of Ray's processes write their title over their environment."""
        with suppress(psutil.Error):
            return any(_name(parent) == "raylet" and parent not in self._before for parent in process.parents())
        return False


def start_local_ray(**options: Any) -> LocalRay:
    """Start a Ray on this machine for this process, without a dashboard.

    Args:
        options: further arguments of ``ray.init``.

    Raises:
        RunError: Ray does not come up; no process of it is left behind.
        RunInterrupted: SIGTERM came meanwhile; the same.
    """
    for number in range(START_TRIES):
        before, token = _processes_below(), secrets.token_hex(TOKEN_BYTES)
        try:
            _start(token, options)
            return LocalRay(token, before)
        except BaseException as error:
            LocalRay(token, before).stop()
            if not isinstance(error, Exception) or isinstance(error, RunInterrupted):
                raise
            # Ray's exception is a bare one
            if number + 1 == START_TRIES or "timed out during startup" not in str(error):
                raise RunError(f"Ray did not start on this machine: {str(error).strip() or repr(error)}") from error
    raise AssertionError("unreachable")


@contextmanager
def ray_environment(**more: str) -> Iterator[None]:
    """Variables that Ray reads while it starts or connects; afterwards they are as they were.

    Args:
        more: beside those that are set only where the environment has no value of its own.
    """
    wanted = {name: value for name, value in _CHOICES.items() if name not in os.environ} | more
    with _environment(wanted):
        _read_environment()
        yield


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(token: str, options: Mapping[str, Any]) -> None:
    import ray

    passive = {name: value for name, value in PASSIVE.items() if name not in os.environ}
    keys = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_worker_niceness": "0"}
    with patience_with_nodes(), ray_environment(**keys, **passive), keeping_signal_handlers(), interruptible():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )


@contextmanager
def patience_with_nodes() -> Iterator[None]:
    """Whatever Ray starts in this process meanwhile has ``START_SECONDS`` to come up.

    On a crowded machine a node's Python processes need more time for their imports than Ray's constants allow: a raylet
    ends itself if its agents have not chosen their ports after 15 s, and is given up after 30 s. Here the ports are
    chosen for the agents, so that nobody waits for them, and one look for the node takes as long as a start may. A
    raylet that is dead is not waited for.
    """
    import ray._private.services

    services: Any = ray._private.services
    find, start = services.get_node, services.start_raylet

    def with_ports(*given: Any, **named: Any) -> Any:
        known = inspect.signature(start).bind(*given, **named).arguments
        for name, port in zip(_AGENT_PORTS, _free_ports(len(_AGENT_PORTS)), strict=True):
            known[name] = known.get(name) or port
        # of this one the raylet is told in a file only, which the agent would write
        told = Path(known["session_dir"], f"{_LISTENING}_{known['node_id']}")
        told.write_text(str(known[_LISTENING]))
        return start(**known)

    def patient(gcs_address: str, node_id: str) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return find(gcs_address, node_id)
            except RuntimeError:
                raylets = [process for process in _processes_below() if _name(process) == "raylet" and _lives(process)]
                if not raylets or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    services.get_node, services.start_raylet = patient, with_ports
    try:
        with _environment({name: value for name, value in _LIMITS.items() if name not in os.environ}):
            yield
    finally:
        services.get_node, services.start_raylet = find, start


def _free_ports(count: int) -> set[int]:
    """Ports that nobody listens at right now."""
    free: set[int] = set()
    while len(free) < count:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            free.add(port)
    return free


def _forget_token() -> None:
    """What this process's connections show from now on is what its environment says, for clusters that it may join."""
    with ray_environment():
        pass


def _read_environment() -> None:
    """Ray reads its settings once and keeps them: let it read them again."""
    import ray._raylet

    inner: Any = ray._raylet  # as Ray's own start-up does when it turns tokens on
    inner.Config.initialize("")
    inner.AuthenticationTokenLoader.instance().reset_cache()


def _processes_below() -> list[psutil.Process]:
    """All processes that this one has started, and what these have."""
    return list(psutil.Process().children(recursive=True))


def _end(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + END_SECONDS
    while any(_lives(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
