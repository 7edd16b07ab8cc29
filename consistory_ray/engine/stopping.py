"""Ctrl-C and SIGTERM: the first asks the run to stop, the second makes it leave at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from consistory_ray.errors import RunInterrupted

EXIT_RESUME = 75
"""Exit code of an interrupted run (EX_TEMPFAIL): run the same command again."""
EXIT_MAX_COST = 76
"""Exit code of a run that its ``--max-cost`` has stopped: the same command goes on, and may cost as much again."""


class StopRequest:
    """Whether the run should stop, and how soon. May be set from any thread.

    Attributes:
        reason: who asked; empty while nobody did.
        at_once: do not wait for running batches.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.at_once = False

    def __bool__(self) -> bool:
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        """Ask to stop; a second time to leave at once."""
        self.at_once = bool(self.reason)
        self.reason = self.reason or reason


@contextmanager
def keeping_signal_handlers() -> Iterator[None]:
    """What SIGINT and SIGTERM do is the same after as before: ``ray.init`` lets SIGTERM end the process at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # else it was not set from Python
                    signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """While it runs ``ray.init`` has a handler of its own for SIGTERM, which cleans up and leaves by SystemExit.

    Raises:
        RunInterrupted: in place of that.
    """
    try:
        yield
    except SystemExit as error:
        raise RunInterrupted("SIGTERM") from error


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Let SIGINT and SIGTERM ask for the stop while inside; does nothing outside the main thread.

    The second signal also raises KeyboardInterrupt, so that nothing that hangs can hold the process; the third ends the
    process where it stands. Every write is atomic, so even that leaves whole files only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.at_once:
            os._exit(EXIT_RESUME)
        stop.ask(signal.Signals(number).name)
        if stop.at_once:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
