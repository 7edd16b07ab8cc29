"""``status --watch``: an output's status again and again, from storage alone, until its run is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consistory_ray.errors import StorageError
from consistory_ray.watch.progress import pace
from consistory_ray.watch.status import Status, SubjectStatus

SUBJECTS_SHOWN = 12
STORAGE_TRIES = 5
"""Readings in a row that may fail before the watch gives up."""
SECONDS_BETWEEN_LINES = 60.0
"""How often a plain line is repeated while nothing changes."""
OVER = ("complete", "failed", "interrupted")


def watch_status(
    read: Callable[[], Status],
    console: Console,
    interval: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Status:
    """Show a status, live on a terminal and as lines elsewhere, until the run is over.

    Args:
        read: reads it.
        console: where to.
        interval: seconds between two readings.
        sleep, clock: instead of the real ones.

    Returns:
        The last status.

    Raises:
        InputError, StorageError: it cannot be read, several times in a row.
    """
    show = _Live(console) if console.is_terminal else _Lines(console, clock)
    with show:
        troubles = 0
        while True:
            try:
                status = read()
                troubles = 0
                show.status(status)
                if status.state in OVER:
                    return status
            except StorageError as error:
                troubles += 1
                if troubles >= STORAGE_TRIES:
                    raise
                show.trouble(str(error))
            sleep(interval)


def status_line(status: Status) -> str:
    """A status in a line."""
    share = 100 * status.done // max(1, status.planned)
    parts = [f"{status.name}: {status.state}, {status.done}/{status.planned} pictures ({share} %)"]
    if status.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in status.failure_kinds.items())
        parts.append(f"{status.failed} failed ({kinds})")
    speed = pace(status.rate, status.seconds_left)
    parts += speed
    if not speed and status.state == "running":
        parts.append(f"newest picture at {status.newest_at}" if status.newest_at else "no picture yet")
    if status.error and status.state == "running":
        parts.append("waiting for its output")
    if status.silent:
        parts.append(silence(status))
    return ", ".join(parts)


def silence(status: Status) -> str:
    """What to say of a run that nobody seems to run any more."""
    return (
        f"nothing heard of its coordinator since {status.heard_at}: if nothing restarts it, run the same command again"
    )


def status_panel(status: Status) -> RenderableType:
    """A status as a table: the subjects at work first, then those that wait, then a bar for all."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, max_width=32)
    table.add_column(width=32)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for subject in sorted(status.subjects, key=_rank)[:SUBJECTS_SHOWN]:
        failed = Text(f"{subject.failed} failed", style="red") if subject.failed else Text("")
        bar = ProgressBar(max(1, subject.planned), subject.done + subject.failed, width=32)
        table.add_row(Text(subject.subject_id), bar, f"{subject.done}/{subject.planned}", failed)
    if len(status.subjects) > SUBJECTS_SHOWN:
        table.add_row(Text(f"and {len(status.subjects) - SUBJECTS_SHOWN} more", style="dim"))
    bar = ProgressBar(max(1, status.planned), status.done + status.failed, width=32)
    table.add_row(Text("all", style="bold"), bar, f"{status.done}/{status.planned}", "")
    return Group(table, Text(status_line(status), style="dim"), Text(status.output, style="dim"))


def _rank(subject: SubjectStatus) -> tuple[int, int]:
    """Subjects that have begun and are not over come first, then those to come, then those that are over."""
    reached = subject.done + subject.failed
    order = 2 if reached >= subject.planned else 0 if reached else 1
    return order, -subject.failed


class _Lines:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._last: tuple[object, ...] = ()
        self._printed_at = clock()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def status(self, status: Status) -> None:
        now = (status.state, status.done, status.failed, status.silent)
        if now != self._last or self._clock() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print(status_line(status))
        self._last = now

    def trouble(self, text: str) -> None:
        self._print(f"{text} (trying again)")

    def _print(self, text: str) -> None:
        self._printed_at = self._clock()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Live:
    def __init__(self, console: Console) -> None:
        self._live = Live(Text("reading …", style="dim"), console=console, auto_refresh=False)

    def __enter__(self) -> _Live:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def status(self, status: Status) -> None:
        self._live.update(status_panel(status), refresh=True)

    def trouble(self, text: str) -> None:
        self._live.console.print(Text(f"{text} (trying again)", style="yellow"))
