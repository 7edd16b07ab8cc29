"""Texts in lines of a width."""

from __future__ import annotations

from consistory_ray.export.character_sheet.fonts import Fonts


def wrapped(text: str, width: float, size: float, fonts: Fonts, *, lines: int, bold: bool = False) -> list[str]:
    """A text in lines of at most a width, and no more than ``lines``: what is too much ends in an ellipsis.

    Lines end at spaces, after hyphens and slashes, or in the middle of what is wider than a line.
    """
    found, rest = list[str](), " ".join(text.split())
    while rest and len(found) < lines:
        end = _fitting(rest, width, size, fonts, bold=bold)
        if end < len(rest):
            if len(found) == lines - 1:
                while end > 1 and fonts.width(rest[:end].rstrip() + "…", size, bold=bold) > width:
                    end -= 1
                return [*found, rest[:end].rstrip() + "…"]
            end = max(rest.rfind(" ", 0, end + 1), rest.rfind("-", 0, end) + 1, rest.rfind("/", 0, end) + 1) or end
        found.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return found


def _fitting(text: str, width: float, size: float, fonts: Fonts, *, bold: bool) -> int:
    """How many letters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if fonts.width(text[:middle], size, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return low
