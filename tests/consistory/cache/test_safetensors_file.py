"""Our reader of safetensors: it accepts what the library accepts, and nothing else."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load

from consistory_ray.consistory.cache.safetensors_file import deserialise

PLACES = st.one_of(st.integers(-2, 20), st.sampled_from([2**63, 2**64, 10**30, True, None, 1.5, "4"]))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "BOOL", "I64", "X9", None]),
        "shape": st.one_of(st.lists(PLACES, max_size=3), st.just([-1]), st.none()),
        "data_offsets": st.one_of(st.lists(PLACES, min_size=2, max_size=2), st.lists(PLACES, max_size=3)),
    }
)


def file_of(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def verdicts(content: bytes) -> tuple[Any, Any]:
    ours = theirs = None
    with contextlib.suppress(ValueError):
        ours, _ = deserialise(np.frombuffer(content, np.uint8))
    with contextlib.suppress(SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OverflowError):
        theirs = load(content)
    return ours, theirs


LIES = [
    {"shape": shape, "data_offsets": offsets}
    for shape, offsets in [
        ([2], [8, 0]), ([2], [0, 0]), ([-1], [0, 8]), ([2], [-8, 0]), ([2], [8, 16]), ([2**62, 4], [0, 8]),
        ([3], [0, 8]), ([2], [0, 2**63]),
    ]
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lying_headers(lie: dict[str, Any]) -> None:
    assert verdicts(file_of({"a": {"dtype": "F32", **lie}}, bytes(8))) == (None, None)


def test_overlaps_holes_and_headers_that_are_none() -> None:
    whole = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    assert verdicts(file_of({"a": whole, "b": whole}, bytes(8))) == (None, None)
    part = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    assert verdicts(file_of({"a": part, "b": {**part, "data_offsets": [4, 6]}}, bytes(6))) == (None, None)
    for content in (b"", bytes(8), b"\xff" * 16, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9**5) + b"[" * 9**5):
        assert verdicts(content)[0] is None


@given(st.dictionaries(st.sampled_from("abc"), ENTRIES, max_size=3), st.integers(0, 24))
@settings(max_examples=300, deadline=None)
def test_the_library_agrees(header: dict[str, Any], size: int) -> None:
    ours, theirs = verdicts(file_of(header, bytes(range(size))))
    if ours is not None:
        assert theirs is not None and ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
