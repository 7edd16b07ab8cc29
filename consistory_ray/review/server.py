"""The process that answers: one uvicorn on one port, until Ctrl-C."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from consistory_ray.errors import InputError, Problem

if TYPE_CHECKING:
    from starlette.applications import Starlette


def refuse_without_extra() -> None:
    """Go on only where the extra ``review`` is installed.

    Raises:
        InputError: it is not.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        fix = "install it: pip install 'consistory-ray[review]'"
        raise InputError("a review needs more packages", [Problem("review", f"{missing[0]} is not installed", fix)])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: there is no such address on this machine, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        is_port = isinstance(error, PermissionError) or "in use" in str(error)
        field, value = ("--port", str(port)) if is_port else ("--host", host)
        fix = (
            "give another one, or none" if is_port else "give an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        )
        raise InputError("the review cannot be reached there", [Problem(field, value, f"{fix} ({error})")]) from error


def link(sock: socket.socket, host: str, token: str) -> str:
    """The address to open, token included."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{sock.getsockname()[1]}/?token={token}"


def can_open_browser(host: str) -> bool:
    """Whether there is a screen for a browser, and only this machine is meant."""
    has_screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return has_screen and host in ("127.0.0.1", "localhost", "::1") and sys.stdout.isatty()


def serve(app: Starlette, sock: socket.socket, address: str, *, browse: bool, ready: Callable[[], None]) -> None:
    """Answer until the process is interrupted; what was decided by then is on storage.

    Args:
        app: what answers.
        sock: where it listens.
        address: of the page.
        browse: whether to open a browser there.
        ready: called before the first request is answered.
    """
    import uvicorn

    config = uvicorn.Config(
        *(app,), log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none"
    )
    ready()
    if browse:
        webbrowser.open(address)
    with suppress(KeyboardInterrupt):  # uvicorn raises it once more when it is done
        uvicorn.Server(config).run(sockets=[sock])
