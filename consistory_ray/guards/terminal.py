"""The door to the terminal: what is printed loses what would move the cursor, colour the screen, or hide text.

Texts of an output, of a job or of a storage's errors were written by others. They are not cleaned field by field but
here, right before they are shown.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from consistory_ray.guards.redaction import visible


class SafeConsole(Console):
    """A console that shows control characters as ``\\x1b`` instead of obeying them; its own styles still work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is to be shown, piece by piece."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text, lines=True), style)


def speaks_unicode(stream: Any) -> bool:
    """Whether a stream can carry every character; of one that does not tell its encoding that is taken for granted."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").replace("_", "")
    return encoding.startswith("utf")


def printable_streams() -> None:
    """What the terminal's encoding lacks is written as an escape, rather than ending in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
