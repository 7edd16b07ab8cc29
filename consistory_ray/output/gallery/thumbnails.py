"""Thumbnails of the gallery: for pictures too big for a page, named by their content, so that each is made once."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from consistory_ray.output.assets import open_picture
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError
from consistory_ray.pictures.provenance import PACKET, TRAINED, source_type

THUMBNAIL_FOLDER = "gallery/thumbnails"
THUMBNAIL_PIXELS = 448
NAME_DIGITS = 32
"""Digits of a picture's SHA-256 that its thumbnail is named by."""
_SMALL_BYTES = 150_000  # pictures up to this size and THUMBNAIL_PIXELS are shown as they are


def needs_thumbnail(row: Mapping[str, Any]) -> bool:
    """Whether a picture is too large to be shown as it is, by its index row."""
    return bool(max(row["width"], row["height"]) > THUMBNAIL_PIXELS or row["size"] > _SMALL_BYTES)


def need_thumbnails(table: pa.Table) -> pa.ChunkedArray:
    """:func:`needs_thumbnail` for each of many rows; false for failed ones."""
    sides = pc.max_element_wise(table["width"], table["height"])
    large = pc.or_(pc.greater(sides, THUMBNAIL_PIXELS), pc.greater(table["size"], _SMALL_BYTES))
    return pc.and_(pc.equal(table["status"], "ok"), pc.fill_null(large, False))


def thumbnail_path(sha256: str) -> str:
    """Where the thumbnail of a picture lies, below the output."""
    return f"{THUMBNAIL_FOLDER}/{sha256[:NAME_DIGITS]}.webp"


def thumbnail_name(path: str) -> str:
    """The beginning of the picture's SHA-256, from the path of its thumbnail."""
    return path.rsplit("/", 1)[-1].removesuffix(".webp")


def make_thumbnail(store: OutputStore, row: Mapping[str, Any]) -> str:
    """Write a picture's thumbnail; returns why there can be none, or nothing.

    Raises:
        StorageError: the storage failed in another way than by not having the picture.
    """
    try:
        data = store.read(row["path"])
    except MissingFileError:
        return "the file is missing"
    except UnfitFileError as error:
        return str(error)
    try:
        with open_picture(data) as image:
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            said = PACKET.encode() if source_type(data) == TRAINED else b""
            image.convert("RGB").save(buffer, "WEBP", quality=82, method=4, xmp=said)
    except Exception as error:  # see open_picture
        return f"the file cannot be decoded: {error}"
    store.write_atomic(thumbnail_path(row["sha256"]), buffer.getvalue())
    return ""
