"""Small pictures for the grid: the gallery's thumbnails, made where they are missing, once for everybody.

They are written where the gallery keeps them, named by the picture's content: whoever reviews next, on whatever
machine, and the gallery itself find them there. Decisions are written to the same output anyway. Where it cannot be
written to, they are made for this process alone.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from consistory_ray.errors import StorageError
from consistory_ray.output.gallery.thumbnails import needs_thumbnail, shrunk, thumbnail_path
from consistory_ray.output.storage import MissingFileError, OutputStore

MOST_BYTES = 256 << 20
"""So much is kept in memory."""
_log = logging.getLogger(__name__)


class Previews:
    """Small pictures by content. It may be used from several threads.

    Args:
        store: the output.
    """

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._told = False

    def read(self, row: Mapping[str, Any]) -> tuple[bytes, str]:
        """A picture small enough for a grid, and its media type.

        Args:
            row: of the index, of a picture that is there.

        Raises:
            StorageError: the picture cannot be read.
            ValueError: it cannot be decoded.
        """
        if not needs_thumbnail(row):
            return self._store.read(row["path"]), "image/png"
        name = row["sha256"]
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name], "image/webp"
        data = self._made(row)
        with self._lock:
            self._bytes += len(data) - len(self._kept.get(name, b""))
            self._kept[name] = data
            while self._bytes > MOST_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data, "image/webp"

    def _made(self, row: Mapping[str, Any]) -> bytes:
        place = thumbnail_path(row["sha256"])
        try:
            return self._store.read(place)
        except MissingFileError:
            pass
        data = shrunk(self._store.read(row["path"]))
        try:
            self._store.write_atomic(place, data)
        except StorageError as error:
            if not self._told:
                self._told = True
                _log.warning("small pictures are kept in memory, since the output cannot be written to: %s", error)
        return data
