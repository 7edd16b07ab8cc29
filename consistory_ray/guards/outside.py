"""What comes from outside, read with limits: from files that others may have put there, and never further than asked.

Whoever can write to an output, or hands over a stored subject, decides about the bytes that are read here. A file is
opened only if it is one (a pipe would be waited for, a device read for ever, a link leads anywhere), no more of it is
read than a limit, and JSON of it is refused where it is nested deeply, has very many values, or holds NaN. Pure.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"))


class NotAFile(OSError):
    """There is something else than a file in a file's place.

    Attributes:
        kind: what it is, in words such as "a pipe".
    """

    def __init__(self, kind: str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind}, not a file")
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind,)


class TooLarge(OSError):
    """A file is larger than what is read of its kind."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much JSON is taken.

    Attributes:
        bytes: of the text.
        values: how many members and entries it may have, going by its commas and brackets.
        depth: how deeply lists and mappings may lie within each other.
    """

    bytes: int = 1 << 20
    values: int = 200_000
    depth: int = 64


def kind_of(mode: int) -> str:
    """What a file mode stands for, in words; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else next((word for test, word in _KINDS if test(mode)), "no file")


def open_regular(path: str | os.PathLike[str], *, follow: bool = False) -> BinaryIO:
    """Open a local file for reading, if it is a regular one; nothing else is even opened.

    Args:
        path: where it is. Links among its parent folders are followed.
        follow: whether it may be a link itself.

    Raises:
        NotAFile: it is a link, a pipe, a device, a socket or a folder.
        OSError: it is not there or cannot be opened.
    """
    if kind := kind_of((os.stat if follow else os.lstat)(path).st_mode):
        raise NotAFile(kind)
    descriptor = os.open(path, _FLAGS if follow else _FLAGS | _NO_LINK)
    try:
        if kind := kind_of(os.fstat(descriptor).st_mode):  # it was another one a moment ago
            raise NotAFile(kind)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], limit: int | None = None, *, follow: bool = False) -> bytes:
    """The content of a local file.

    Args:
        path, follow: see :func:`open_regular`.
        limit: most bytes of it; None for any number.

    Raises:
        NotAFile, OSError: see :func:`open_regular`.
        TooLarge: it has more.
    """
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            refuse_size(size, limit)
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        refuse_size(len(data), limit)
    return data


def refuse_size(size: int, limit: int) -> NoReturn:
    """Say that something is too large.

    Raises:
        TooLarge: always.
    """
    raise TooLarge(errno.EFBIG, f"it has {size} bytes, more than the {limit} that are read of such a file")


def parse_json(data: bytes | bytearray | str, limits: Limits = Limits()) -> Any:
    """JSON from outside as plain values.

    Raises:
        ValueError: it is no JSON, holds NaN or infinities, or is beyond the limits; the message says which.
    """
    if len(data) > limits.bytes:
        raise ValueError(f"it has {len(data)} bytes, more than {limits.bytes}")
    text = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if _marks(text) > limits.values and _marks(_STRINGS.sub(b"", text)) > limits.values:
        raise ValueError(f"it has more than {limits.values} values")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error.reason})") from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limits.depth + 1):
        if not level:
            return value
        members = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [inner for some in members for inner in some if isinstance(inner, (dict, list))]
    raise ValueError("it is nested too deeply")


def _marks(text: bytes | bytearray) -> int:
    """Commas and opening brackets: there are at most so many values more than one."""
    return sum(text.count(mark) for mark in (b",", b"[", b"{"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
