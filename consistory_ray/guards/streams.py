"""Standard output and error, whatever encoding the terminal or the pipe has."""

from __future__ import annotations

import io
import sys
from typing import Any


def speaks_unicode(stream: Any) -> bool:
    """Whether a stream can carry every character; of one that does not tell its encoding that is taken for granted."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").replace("_", "")
    return encoding.startswith("utf")


def printable_streams() -> None:
    """What the terminal's encoding lacks is written as an escape, rather than ending in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
