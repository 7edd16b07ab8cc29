"""What a run writes to its log: one line per asset, as text for people or as JSON for machines, and never a secret.

The log is this package's own part of Python's logging; what other libraries log is left to them. Fields that say what
a line is about (run, subject, asset, worker, attempt) travel beside the message: as JSON keys, or as ``key=value`` at
the end of a line of text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any, Literal

from consistory_ray.engine.events import (
    AssetDone,
    AssetFailed,
    BatchDone,
    Committed,
    Event,
    Notice,
    Paused,
    Pulse,
    Retried,
    RunFinished,
    Stopping,
    WorkerLost,
)
from consistory_ray.errors import ConsistoryError, InputError
from consistory_ray.guards.redaction import redacted, visible
from consistory_ray.guards.terminal import speaks_unicode
from consistory_ray.watch.progress import describe

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from consistory_ray.engine.rendering import Renderer, RendererFactory, RendererSpec

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

NAME = "consistory_ray"
_TEXT_LINE = "%(asctime)s %(levelname)s %(message)s"

_log = logging.getLogger(f"{NAME}.run")


class SecretFilter(logging.Filter):
    """Takes secrets out of everything a record will say: message, arguments, fields, traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed."""
        record.msg, record.args = visible(redacted(record.getMessage()), lines=True), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = visible(redacted(record.exc_text), lines=True)
        fields = getattr(record, "fields", None)
        if fields:
            record.fields = {
                key: visible(redacted(text)) if isinstance(text, str) else text for key, text in fields.items()
            }
        return True


class TextFormatter(logging.Formatter):
    """``message key=value …``, after what the format string says."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it if there is one."""
        text = super().format(record)
        fields = " ".join(f"{key}={_bare(value)}" for key, value in _fields(record, {}).items())
        head, _, rest = text.partition("\n")
        head = f"{head}  {fields}" if fields else head
        return f"{head}\n{rest}" if rest else head


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, message, logger, the fields, and the traceback of an error.

    Args:
        always: fields of every line.
    """

    def __init__(self, always: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.always = dict(always or {})

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= {"logger": record.name, **_fields(record, self.always)}
        if record.exc_text or record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(line, ensure_ascii=not speaks_unicode(sys.stderr), default=str)


def log_to(
    stream: IO[str] | None = None, *, style: LogFormat = "text", level: LogLevel = "warning", **always: Any
) -> None:
    """Send this package's log to a stream, and nowhere else.

    Args:
        stream: None is stderr.
        style: lines of text or of JSON.
        level: what is left out below.
        always: fields of every JSON line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(always) if style == "json" else TextFormatter(_TEXT_LINE))
    log_through(handler, level)


def log_through(handler: logging.Handler, level: LogLevel) -> None:
    """:func:`log_to` with a handler that has a formatter, such as one that writes above a live display."""
    handler.addFilter(SecretFilter())
    logger = logging.getLogger(NAME)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


@contextmanager
def logging_run(console: Console, *, style: LogFormat, level: LogLevel) -> Iterator[None]:
    """Log while inside: above the console's live display on a terminal, as plain lines elsewhere, or as JSON.

    As JSON, errors meant for people are log lines too; they are raised all the same.
    """
    logger = logging.getLogger(NAME)
    before = logger.handlers, logger.level, logger.propagate
    if style == "text" and console.is_terminal:
        from rich.logging import RichHandler

        handler = RichHandler(console=console, show_path=False, show_time=False)
        handler.setFormatter(TextFormatter("%(message)s"))
        log_through(handler, level)
    else:
        log_to(console.file, style=style, level=level)
    try:
        yield
    except ConsistoryError as error:
        if style == "json":
            problems = [str(problem) for problem in error.problems] if isinstance(error, InputError) else []
            message = error.message if isinstance(error, InputError) else str(error)
            fields: dict[str, Any] = {"error": type(error).__name__}
            fields |= {"problems": [redacted(text) for text in problems]} if problems else {}
            logging.getLogger(NAME).error("%s", message, extra={"fields": fields})
        raise
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


class EventLog:
    """Writes a run's events into the log, with ``run`` and whatever else is known as fields.

    Args:
        run: the job's name.
        assets_only: leave everything else to a display: one line per asset and nothing more.
    """

    def __init__(self, run: str, *, assets_only: bool = False) -> None:
        self._run = run
        self._assets_only = assets_only
        self._begun = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Log it, if it is worth a line."""
        if isinstance(event, AssetDone | AssetFailed):
            self._asset(event)
        elif not self._assets_only:
            self._other(event)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _asset(self, event: AssetDone | AssetFailed) -> None:
        asset = event.asset
        fields: dict[str, Any] = {
            "subject": asset.subject_id,
            "asset": asset.asset_id,
            "kind": asset.kind,
            "path": asset.path,
        }
        told = {item.name: getattr(event, item.name) for item in dataclasses.fields(event) if item.name != "asset"}
        fields |= {name: value for name, value in told.items() if name != "score" or value is not None}
        if isinstance(event, AssetDone):
            self._say(logging.INFO, f"{asset.path} is done", **fields)
        else:
            level = logging.INFO if self._assets_only else logging.WARNING  # where a display tells it, that is enough
            self._say(level, f"{asset.path} failed: {event.error}", **fields)

    def _other(self, event: Event) -> None:
        if isinstance(event, Pulse | BatchDone | Committed | Retried):
            values = dataclasses.asdict(event)
            self._say(logging.DEBUG, type(event).__name__, **values)
        elif isinstance(event, RunFinished):
            summary = event.summary
            names = ("state", "planned", "found", "rendered", "failed", "seconds", "url")
            self._say(logging.INFO, f"the run is {summary.state}", **{name: getattr(summary, name) for name in names})
        elif (text := describe(event)) is not None:
            serious = isinstance(event, Notice | Paused | Stopping | WorkerLost)
            worker = getattr(event, "worker", None)
            fields = {"worker": worker} if worker else {}
            self._say(logging.WARNING if serious else logging.INFO, text, **fields)

    def _say(self, level: int, message: str, **fields: Any) -> None:
        _log.log(level, "%s", message, extra={"fields": {"run": self._run, **fields}})


def logging_renderer(factory: RendererFactory, *, style: LogFormat, level: LogLevel, run: str) -> RendererFactory:
    """A renderer factory whose workers log as this process does, into the files that Ray keeps of each worker."""
    return functools.partial(_make_renderer, factory, style, level, run)


def _make_renderer(
    factory: RendererFactory, style: LogFormat, level: LogLevel, run: str, spec: RendererSpec
) -> Renderer:
    log_to(style=style, level=level, run=run, host=socket.gethostname(), process=os.getpid())
    return factory(spec)


def _fields(record: logging.LogRecord, always: dict[str, Any]) -> dict[str, Any]:
    return {**always, **(getattr(record, "fields", None) or {})}


def _bare(value: Any) -> str:
    """A value for ``key=value``: quoted only where it must be."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s"=]', text) else text


Listener = Callable[[Event], None]


def both(*listeners: Listener) -> Listener:
    """Tells each of several listeners, in order."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell
