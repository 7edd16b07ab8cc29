"""What drivers are given for large objects: no second copy, and the same bytes at the other end."""

from __future__ import annotations

import uuid
from typing import Any

import fsspec
import numpy as np
import pytest

from consistory_ray.output import driver_files
from consistory_ray.output.driver_files import LARGE, Pieces, payload
from consistory_ray.output.storage import open_output


class Driver:
    def __init__(self, *protocol: str) -> None:
        self.protocol = protocol if len(protocol) > 1 else protocol[0]


def test_small_data_and_unknown_drivers_get_bytes() -> None:
    assert payload(Driver("s3", "s3a"), memoryview(b"ab")) == b"ab"
    assert isinstance(payload(Driver("abfs", "az"), memoryview(bytearray(LARGE))), bytes)
    data = bytes(LARGE)
    assert payload(Driver("s3"), data) is data


@pytest.mark.parametrize(("protocol", "kind"), [("s3", Pieces), ("s3a", Pieces), ("gs", memoryview)])
def test_large_data_is_not_copied(protocol: str, kind: type) -> None:
    data = np.zeros(LARGE, np.uint8)
    found = payload(Driver(protocol, "other"), data.data)
    assert isinstance(found, kind) and len(found) == LARGE
    data[3] = 7
    assert bytes(found[2:5]) == b"\0\7\0", "it looks at the data itself"


def test_a_large_object_arrives_whole(s3_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_output(f"s3://runs/{uuid.uuid4().hex}", **s3_options)
    data = np.random.default_rng(0).integers(0, 256, 12_000_001, np.uint8)
    monkeypatch.setattr(driver_files, "LARGE", 1 << 20)
    parts: list[Any] = []
    original = store.fs._pipe_file

    async def in_small_parts(path: str, data: Any, **options: Any) -> Any:
        parts.append(data)
        return await original(path, data, chunksize=5 << 20, **options)

    monkeypatch.setattr(store.fs, "pipe_file", fsspec.asyn.sync_wrapper(in_small_parts, obj=store.fs))
    store.write_atomic("anchors/cache.safetensors", data.data)
    assert isinstance(parts[0], Pieces)
    assert store.read("anchors/cache.safetensors") == data.tobytes()
