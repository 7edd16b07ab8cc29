"""A worker whose machine is going finishes what is on its device, and says so of the rest."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable


def drain_on_sigterm(drain: Callable[[], None]) -> None:
    """On SIGTERM the machine is going: what is on the device is finished, written and reported, the rest is refused.

    In an actor the main thread sits in Ray's own loop, where Python runs no signal handlers; so the interpreter's
    wake-up file descriptor, which is written to by the signal itself, tells a thread.
    """
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        with sending, receiving:
            while number := receiving.recv(1):
                if number[0] == signal.SIGTERM:
                    drain()

    threading.Thread(target=listen, name="signals", daemon=True).start()
