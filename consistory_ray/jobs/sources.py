"""Reading one file that somebody named, with a limit on its bytes, and the reason in plain words if that fails."""

from __future__ import annotations

import errno
import gzip
import io
import socket
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from consistory_ray.guards.outside import NotAFile
from consistory_ray.guards.places import Place

_BLOCK = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS
_RIGHTS = "check your rights to it, and the credentials in the environment"
_CHECK = "check the address and your rights to it"
_BY_STATUS = {
    401: ("the server wants credentials (401)", _RIGHTS),
    403: ("the server forbids it (403)", _RIGHTS),
    404: ("no such file", "check the path"),
    410: ("no such file any more (410)", "check the path"),
}


class TooLargeError(Exception):
    """More bytes than are read; the rest was left where it is."""


def read_all(place: Place, limit: int, *, gzipped: bool = False) -> bytes:
    """A file's content of at most ``limit`` bytes, unpacked.

    Raises:
        TooLargeError: it is larger.
        Exception: whatever its file system raises; :func:`reading_problem` knows the words.
    """
    with place.open() as stream:
        return bytes(_unpacked(stream, limit) if gzipped else _limited(stream, limit))


def read_standard_input(limit: int) -> bytes:
    """The same from standard input, unpacked if it is a gzip stream."""
    stream = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), _BLOCK)
    gzipped = stream.peek(2)[:2] == b"\x1f\x8b"
    return bytes(_unpacked(stream, limit) if gzipped else _limited(stream, limit))


def _limited(stream: BinaryIO, limit: int) -> bytearray:
    size = getattr(stream, "size", None)
    if isinstance(size, int) and size > limit:
        raise TooLargeError
    content = bytearray()
    while block := stream.read(min(_BLOCK, limit + 1 - len(content))):
        content += block
        if len(content) > limit:
            raise TooLargeError
    return content


def _unpacked(stream: BinaryIO, limit: int) -> bytearray:
    content, unpack = bytearray(), zlib.decompressobj(_GZIP)
    for block in _blocks(stream):
        data = block
        while data:
            if unpack.eof:
                if not data.strip(b"\0"):
                    break
                unpack = zlib.decompressobj(_GZIP)
            content += unpack.decompress(data, limit + 1 - len(content))
            if len(content) > limit:
                raise TooLargeError
            data = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
    if not unpack.eof:
        raise gzip.BadGzipFile("it ends too early")
    return content


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def reading_problem(error: BaseException, place: Place) -> tuple[str, str] | None:
    """What happened and what to do about it; None for an error that has no better words than its own."""
    chain: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in chain and len(chain) < 10:
        chain.append(inner)
        inner = inner.__cause__ or inner.__context__
    for one in chain:
        if isinstance(one, ConnectionRefusedError) or getattr(one, "errno", None) == errno.ECONNREFUSED:
            return "the connection was refused", "check host and port, and that the server runs"
        if isinstance(one, socket.gaierror):
            return "no such host", "check the host's name, and this machine's network"
        status = getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
            again = "try again later" if status >= 500 else _CHECK
            return _BY_STATUS.get(status, (f"the server answered {status}", again))
        if isinstance(one, TimeoutError):
            return "no answer in time", "check host and port, and this machine's network"
    for one in chain:
        names = {kind.__name__ for kind in type(one).__mro__}
        if names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}:
            return "no credentials for this storage", _RIGHTS
        if names & {"EndpointConnectionError", "ClientConnectorError", "ConnectTimeoutError", "SSLError"}:
            return "the storage cannot be reached", "check the address, and this machine's network"
    if isinstance(error, NotAFile):
        return error.kind, "give a file"
    if isinstance(error, FileNotFoundError):
        return "no such file", "check the path"
    if isinstance(error, NotADirectoryError):
        return "no such file: a part of the path is a file", "check the path"
    if isinstance(error, IsADirectoryError):
        return "a folder", "give a file"
    if isinstance(error, PermissionError):
        return "no right to read it", _RIGHTS
    if isinstance(error, ImportError):
        return str(error)[:200], "install the package that reads this kind of URL"
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        return (
            f"unknown kind of URL {place.scheme}://",
            "write a path, or a URL such as s3://, gs://, abfs:// or https://",
        )
    if isinstance(error, (gzip.BadGzipFile, zlib.error)):
        return f"the gzip file is broken: {error}", "write it again"
    return None
