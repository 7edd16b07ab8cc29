"""Watching a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    AssetFailed,
    Event,
    Notice,
    Paused,
    RunStarted,
    Stopping,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
    duration,
    plural,
    size,
)
from consistory_ray.watch.tally import Tally, cause_of

SECONDS_BETWEEN_LINES = 10.0
REFRESH_PER_SECOND = 4


class Watcher(Protocol):
    """Shows a run while inside ``with``; called with every event."""

    def __call__(self, event: Event) -> None: ...

    def __enter__(self) -> Watcher: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainProgress:
    """A line now and then: for logs and pipes.

    Args:
        console: where to.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._tally = Tally(clock)
        self._last_line = clock()
        self._told = _Told()

    def __call__(self, event: Event) -> None:
        """Print what is worth a line."""
        self._tally.take(event)
        if self._told.again(event):
            return
        if (text := describe(event)) is not None:
            self._print(text)
        elif isinstance(event, AssetDone):
            subject = event.asset.subject_id
            done, planned = self._tally.subjects[subject]
            if done == planned:
                self._print(f"{subject}: all {planned} pictures done")
            if done == planned or self._clock() - self._last_line >= SECONDS_BETWEEN_LINES or not self._tally.left:
                self._last_line = self._clock()
                self._print(progress_line(self._tally))

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveProgress:
    """Bars that move: the run's, and those of the subjects at work.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = Tally()
        self._told = _Told()
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=REFRESH_PER_SECOND)

    def __call__(self, event: Event) -> None:
        """Take it in; notices and failures stay on the screen above the bars."""
        self._tally.take(event)
        if self._told.again(event):
            return
        if isinstance(event, AssetFailed | Notice | Paused | Stopping | WorkerLost) and (text := describe(event)):
            style = "red" if isinstance(event, AssetFailed) else "yellow"
            self._console.print(Text(text, style=style))

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        tally = self._tally
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, max_width=32)
        table.add_column(width=32)
        table.add_column(justify="right", no_wrap=True)
        for subject_id in tally.recent:
            done, planned = tally.subjects[subject_id]
            table.add_row(Text(subject_id), ProgressBar(max(1, planned), done, width=32), f"{done}/{planned}")
        bar = ProgressBar(max(1, tally.planned), tally.done + tally.failed, width=32)
        table.add_row(Text("all", style="bold"), bar, f"{tally.done}/{tally.planned}")
        return Group(table, Text(_status(tally), style="dim"))


class _Told:
    """Causes of failures that were told before, subject by subject."""

    def __init__(self) -> None:
        self._causes: set[tuple[str, str]] = set()

    def again(self, event: Event) -> bool:
        """Whether an event is a failure whose cause was told of its subject before."""
        if not isinstance(event, AssetFailed):
            return False
        key = event.asset.subject_id, cause_of(event.error)
        known = key in self._causes
        self._causes.add(key)
        return known


def watcher(console: Console) -> Watcher:
    """The display that fits the console."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def describe(event: Event) -> str | None:
    """An event as a line of text, None for those that only count."""
    if isinstance(event, RunStarted):
        recovered = f", {event.recovered} of them found without a row" if event.recovered else ""
        done = f"{event.done} there already{recovered}, " if event.done else ""
        planned = plural(event.planned, "picture")
        return f"{event.name}: {planned}, {done}{event.planned - event.done} to make, into {event.url}"
    if isinstance(event, WorkersRequested):
        return f"starting {plural(event.count, 'worker')} ({event.device})"
    if isinstance(event, WorkerReady):
        return f"{event.worker} is ready after {duration(event.seconds)} ({event.place})"
    if isinstance(event, WorkerLost):
        return f"{event.worker} died ({event.reason}), {'replaced' if event.replaced else 'not replaced any more'}"
    if isinstance(event, WorkerReleased):
        return f"{event.worker} was let go: {event.reason}"
    if isinstance(event, AnchorsReady):
        how = f"made in {duration(event.seconds)}" if event.made else "loaded"
        return f"{event.subject_id}: anchors {how}, {size(event.cache_bytes)}"
    if isinstance(event, AssetFailed):
        return f"failed: {event.asset.path}: {event.error}"
    if isinstance(event, Notice):
        return event.message
    if isinstance(event, Paused):
        tries = f"trying again in {duration(event.seconds)}, for up to {duration(event.left)}"
        return f"storage is out of reach, {tries}: {event.reason}"
    if isinstance(event, Stopping):
        waits = f"waiting for {plural(event.calls, 'running call')}" if event.calls else "stopping"
        return f"{event.reason}: {waits}; once more to leave at once"
    return None


def progress_line(tally: Tally) -> str:
    """The run in a line."""
    share = 100 * tally.done // max(1, tally.planned)
    return f"{tally.done}/{tally.planned} pictures ({share} %), {_status(tally)}"


def pace(rate: float | None, seconds_left: float | None) -> list[str]:
    """Speed and time left, in words; nothing where they are not known."""
    if not rate or seconds_left is None:
        return []
    speed = f"{rate:.2f} pictures/s" if rate >= 0.1 else f"{1 / rate:.0f} s per picture"
    return [speed, f"about {duration(seconds_left)} left"]


def _status(tally: Tally) -> str:
    parts = []
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.takes:
        parts.append(plural(tally.takes, "further take"))
    if not tally.left:
        return ", ".join([*parts, "writing the index"])
    if not tally.workers_wanted:
        return ", ".join([*parts, "connecting to Ray"])
    if not tally.workers_ready:
        if tally.unplaced >= tally.workers_wanted:
            return ", ".join([*parts, f"{plural(tally.unplaced, 'worker')} waiting for placement"])
        return ", ".join([*parts, f"loading the model on {plural(tally.workers_wanted - tally.unplaced, 'worker')}"])
    parts += pace(tally.rate, tally.seconds_left)
    parts.append(f"{tally.workers_ready} of {plural(tally.workers_wanted, 'worker')}")
    if tally.unplaced:
        parts.append(f"{tally.unplaced} waiting for placement")
    if tally.short_of_room:
        parts.append(f"{tally.short_of_room} waiting for cache room")
    return ", ".join(parts)
