"""Fields of a job that may be models, dataclasses or plain dicts, with whatever somebody wrote in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_TEXT = 4_000
"""Characters of a text that can be used."""

MATRIX_WORDS = ("template", "exclude")
"""The keys of a matrix that are no axes."""

Entry = tuple[int, Any]


def field(item: Any, name: str) -> Any:
    """A field's value; None where it is absent."""
    if isinstance(item, dict):
        return item.get(name)
    return None if isinstance(item, (str, int)) else getattr(item, name, None)


def text_field(item: Any, name: str) -> str:
    """A text, or "" where it is absent, has another type or is too long to be used."""
    value = field(item, name)
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def entries(owner: Any, name: str) -> Iterator[Entry]:
    """A list's entries with their places; none of what is no list, and no numbers, which stand for no entry."""
    value = field(owner, name)
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return ((index, entry) for index, entry in enumerate(listed) if not isinstance(entry, int | float))


def matrix_size(matrix: Any) -> int:
    """How many scenes a subject's matrix is at most, as far as it can be used."""
    if not isinstance(matrix, Mapping):
        return 0
    size = 1
    for name, values in matrix.items():
        if name not in MATRIX_WORDS and isinstance(values, (Mapping, list, tuple)):
            size *= len(values)
    return size
