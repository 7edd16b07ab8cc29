"""Where a Ray cluster is said to be, and whether one is there: found out in seconds, before anything is begun."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from consistory_ray.errors import InputError, Problem

LOCAL = "local"
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
"""The two together are how long it takes at most to find that there is no Ray at an address."""
_FIX = "start a cluster there (ray start --head), or leave the address out to use this machine"
_CLIENT = "ray://"
_NOT_RAY = "something answers there, and it is not Ray (6379 is the usual port, 10001 that of ray://)"


def ray_address(given: str | None) -> str:
    """The address to use: what was given, else what the environment says, else a Ray of our own."""
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def check_address(given: str | None) -> None:
    """Find out whether a Ray answers at the address that a run is to join.

    Args:
        given: the option's value; None is what the environment says.

    Raises:
        InputError: none does; within ten seconds.
    """
    address = ray_address(given)
    if address == LOCAL or _has_joined():
        return
    field = "address" if given else "RAY_ADDRESS"
    try:
        endpoint = endpoint_of(address)
    except (ConnectionError, ValueError) as error:
        raise cannot_join(field, address, str(error).partition(". ")[0]) from error
    if endpoint is None:
        return
    where = "" if address.endswith(f"{endpoint[0]}:{endpoint[1]}") else f"{address} is {endpoint[0]}:{endpoint[1]}: "
    if reason := _in_time(lambda: connection_refused(*endpoint), CONNECT_SECONDS, "nobody answers there"):
        raise cannot_join(field, address, where + reason)
    if reason := _in_time(lambda: _no_ray(*endpoint), ANSWER_SECONDS, _NOT_RAY):
        raise cannot_join(field, address, where + reason)


def _has_joined() -> bool:
    """Whether this process is in a cluster already, which is used as it is."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def cannot_join(field: str, address: str, reason: str) -> InputError:
    """What there is to say about an address at which nothing can be joined."""
    return InputError("cannot join Ray", [Problem(field, f"{address}: {reason}", _FIX)])


def endpoint_of(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster's address; None for the addresses of hosted services, which Ray's plug-ins resolve.

    Raises:
        ConnectionError: the address is ``auto`` and no cluster runs on this machine.
        ValueError: this is no address.
    """
    if address == "auto":
        import ray._private.services

        services: Any = ray._private.services
        services.find_gcs_addresses.cache_clear()
        address = services.canonicalize_bootstrap_address(address) or ""
    if "://" in address and not address.startswith(_CLIENT):
        return None
    try:
        parts = urlsplit(f"//{address.removeprefix(_CLIENT)}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ValueError("give auto, HOST:PORT or ray://HOST:PORT")
    return host, port


def connection_refused(host: str, port: int, seconds: float = CONNECT_SECONDS) -> str:
    """Why there is no connection to a port; empty if there is one."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except socket.gaierror as error:
        return f"there is no host of this name ({error.strerror})"
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"nobody answers there ({reason})"
    return ""


def _no_ray(host: str, port: int) -> str:
    """What is at a port that is open, if it does not speak as Ray does."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel

    channel: Any = init_grpc_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS - 2)
    except grpc.FutureTimeoutError:
        return _NOT_RAY
    finally:
        channel.close()
    return ""


def _in_time(find: Callable[[], str], seconds: float, silence: str) -> str:
    """What was found out; looking up a name has no time limit of its own."""
    found = [silence]

    def look() -> None:
        try:
            found[0] = find()
        except Exception:  # what cannot be asked in this way is left to Ray
            found[0] = ""

    thread = threading.Thread(target=look, name="address", daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    return found[0]
