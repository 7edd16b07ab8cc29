"""Pictures of other assets that lie where the plan wants a picture: kept, never overwritten.

An edited prompt is another asset in the same place. Before the new picture is written the old one is copied to

    replaced/images/SUBJECT/SCENE.ASSET-ID.png

Locally the copy is a hard link, which costs nothing until the new picture is written. Nothing refers to the folder;
whoever needs the space deletes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from consistory_ray.output.lease.fencing import Lost, refuse_if_lost
from consistory_ray.output.storage import OutputStore

REPLACED = "replaced"
"""The folder that replaced pictures are kept in."""

_ASSET_ID = re.compile(r"[0-9a-f]{32}")


def replaced_path(path: str, asset_id: str) -> str:
    """Where an asset's picture is kept that lay at ``path``."""
    return f"{REPLACED}/{path.removesuffix('.png')}.{asset_id}.png"


def keep_replaced(store: OutputStore, path: str, data: bytes, parameters: Mapping[str, Any] | None, lost: Lost) -> None:
    """Keep a file that is about to be overwritten with another asset's picture.

    Args:
        store: the output; the caller is its only writer.
        path: the file.
        data: its content.
        parameters: what it says about itself; None for a file that is not ours.
        lost: why the output may no longer be written to; empty while it may.

    Raises:
        RunError: the output is lost.
        StorageError: the storage failed.
    """
    asset_id = str((parameters or {}).get("asset_id"))
    if not _ASSET_ID.fullmatch(asset_id):
        asset_id = f"unknown-{hashlib.sha256(data).hexdigest()[:24]}"
    refuse_if_lost(lost, f"{store.url}/{path} was not kept")
    store.copy(path, replaced_path(path, asset_id))
