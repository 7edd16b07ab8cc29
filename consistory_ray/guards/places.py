"""What is a URL and what is a path: the one reading of an address that everything which opens something goes by.

A person writes ``out/run``, ``~/run``, ``file:/data/run``, ``S3://bucket/run``; :func:`place_of` says which file system
and which path that is, the allow-list judges this place, and this place is opened, never the words. The reading is
fsspec's wherever fsspec has one. An address that fsspec would take for a strangely named local file, ``s3:/bucket`` or
``FILE:/x``, is refused: its writer meant something else.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.outside import open_regular

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]+)://")
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!//)")
_LOCAL = ("file", "local")
_KNOWN = re.compile(
    "abfss?|adl|arrow_hdfs|az|blockcache|box|dask|data|dbfs|dir|dropbox|file|filecache|ftp|gcs|gdrive|generic|git|github"
    "|gs|hdfs|hf|https?|jar|jupyter|lakefs|libarchive|local|memory|oci|oss|r2|reference|root|s3[an]?|sftp|simplecache|smb"
    "|ssh|tar|wandb|webdav|webhdfs|zip",
    re.IGNORECASE,
)
_WITHIN = re.compile(r"(blockcache|dir|filecache|libarchive|reference|simplecache|tar|zip)://", re.IGNORECASE)
_USER_INFO = re.compile(r"://[^/@\s]*@")


@dataclass(frozen=True)
class Place:
    """Where an address leads.

    Attributes:
        scheme: ``file``, or a URL's scheme in small letters; ``chain`` for what only fsspec can take apart: ``::``
            between two addresses, ``data:``, and file systems within others such as ``zip://``.
        path: of a file its absolute path, otherwise what follows ``://``; of a chain the whole address.
    """

    scheme: str
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return self.scheme == "file"

    @property
    def url(self) -> str:
        """The address written in the one way that all programs read alike; a path for local files."""
        return self.path if self.scheme in ("file", "chain") else f"{self.scheme}://{self.path}"

    def below(self, name: str) -> Place:
        """The place of a file in the folder that this place is."""
        return Place(self.scheme, f"{self.path.rstrip('/')}/{name}")

    def filesystem(self, **options: Any) -> tuple[Any, str]:
        """The fsspec file system and the path in it; contacts nothing.

        Raises:
            ImportError: the driver is not installed.
            ValueError: there is no such kind of URL.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        if self.is_local:
            options = {key: value for key, value in options.items() if key == "auto_mkdir"}
            return LocalFileSystem(**options), self.path
        fs, path = url_to_fs(self.url, **options)
        return fs, str(path)

    def open(self, *, follow: bool = True) -> BinaryIO:
        """Opens a file for reading. Pipes and devices are never waited for.

        Args:
            follow: whether a local file may be a link.

        Raises:
            NotAFile: it is something else than a file.
            Exception: whatever its file system raises.
        """
        if self.is_local:
            return open_regular(self.path, follow=follow)
        fs, path = self.filesystem()
        stream: BinaryIO = fs.open(path, "rb")
        return stream


def place_of(address: str | os.PathLike[str], field: str = "address") -> Place:
    """Where an address leads: nothing is opened or contacted.

    Args:
        address: a path or URL, as people write it.
        field: what it was given as, for the message.

    Raises:
        InputError: it is empty, has a NUL in it, or can be read in two ways.
    """
    text = os.fspath(address)
    if not text.strip() or "\0" in text:
        raise _unusable(field, text, "give a path or a URL such as s3://bucket/folder")
    if "::" in text or text.startswith("data:") or _WITHIN.match(text):
        return Place("chain", text)
    match = _SCHEME.match(text)
    if match and match.group(1).lower() not in _LOCAL:
        return Place(match.group(1).lower(), text[match.end() :])
    if match:
        return Place("file", _absolute(text[match.end() :]))
    match = _ONE_SLASH.match(text)
    if match and match.group(1) in _LOCAL:
        return Place("file", _absolute(text[match.end() :]))
    if match and _KNOWN.fullmatch(match.group(1)):
        scheme = match.group(1).lower()
        fix = f"write {scheme}:// with two slashes (a file of this name is ./{ascii(text)[1:-1][:60]})"
        raise _unusable(field, text, fix)
    return Place("file", _absolute(text))


def without_credentials(address: str) -> str:
    """An address fit for messages: printable, without user, password and query."""
    return ascii(without_user(address.split("?")[0])[:200])[1:-1]


def without_user(address: str) -> str:
    """A URL without the user and password in it."""
    return _USER_INFO.sub("://", address)


def _absolute(path: str) -> str:
    """As fsspec's local file system does it: ``~`` is expanded, the working directory put before a relative path."""
    path = os.path.expanduser(path) if path.startswith("~") else path
    path = path if path.startswith("/") else os.path.join(os.getcwd(), path) if path else os.getcwd()
    while "/./" in path:
        path = path.replace("/./", "/")
    path = path.removesuffix("/.")
    return path.rstrip("/") or "/"


def _unusable(field: str, text: str, fix: str) -> InputError:
    return InputError("this address cannot be used", [Problem(field, without_credentials(text), fix)])
