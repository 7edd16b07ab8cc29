"""Reading and writing the safetensors format with the tensors in a chosen order, streamed, and without copies.

The ``safetensors`` library orders tensors itself and wants them all in memory; an anchor cache needs its steps
contiguous in the file. The format: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistory_ray.guards.outside import Limits, parse_json

_ALIGNMENT = 64
_LIMITS = Limits(bytes=64 << 20, values=2_000_000, depth=4)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
_DTYPES |= {"F8_E4M3": torch.float8_e4m3fn}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Buffer = np.ndarray[Any, np.dtype[np.uint8]]


def as_bytes(tensor: Tensor) -> Buffer:
    """A tensor's bytes, not copied when it is on the CPU and contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Buffer]:
    """The file's bytes in pieces: header first, then every tensor in the order of the mapping.

    Wider dtypes should come first, so that every tensor lies aligned.
    """
    yield np.frombuffer(_header(tensors, metadata), np.uint8)
    for tensor in tensors.values():
        yield as_bytes(tensor)


def pack(tensors: MutableMapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[Buffer, str]:
    """The file's bytes as one array, as :func:`serialise` has them, and their SHA-256 in hexadecimal digits.

    Every tensor is taken out of the mapping once its bytes are in the array: if nobody else holds it, its memory is
    free before the next one is copied, so that both together never take much more than the file.
    """
    header = _header(tensors, metadata)
    buffer = np.empty(len(header) + sum(map(_nbytes, tensors.values())), np.uint8)  # takes room as it is written to
    buffer[: len(header)] = np.frombuffer(header, np.uint8)
    digest, end = hashlib.sha256(header), len(header)
    for name in list(tensors):
        piece = as_bytes(tensors.pop(name))
        begin, end = end, end + piece.nbytes
        buffer[begin:end] = piece
        digest.update(piece.data)
        del piece
    return buffer, digest.hexdigest()


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + _nbytes(tensor)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def deserialise(buffer: Buffer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share the buffer's memory (treat them as read-only) in file order, and the metadata.

    Raises:
        ValueError: the bytes are not a complete safetensors file.
    """
    if buffer.nbytes < 8:
        raise ValueError(f"{buffer.nbytes} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", buffer[:8].tobytes())
    if length > buffer.nbytes - 8:
        raise ValueError("the header is longer than the file")
    header = parse_json(buffer[8 : 8 + length].tobytes(), _LIMITS)
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("the header is not that of a safetensors file")
    metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    data = _shared_tensor(buffer)[8 + length :]
    found, place = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        begin, end = _offsets(name, entry)
        dtype, shape = _DTYPES.get(str(entry.get("dtype"))), entry.get("shape")
        if dtype is None or not isinstance(shape, list) or not all(_is_count(side) for side in shape):
            raise ValueError(f"{name!a} has a dtype or a shape that no such file has")
        if begin != place or end > data.numel() or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name!a} does not lie where its dtype, its shape and the tensors before it say")
        found[name], place = _tensor(data[begin:end], dtype, shape), end
    if place != data.numel():
        raise ValueError(f"the file holds {data.numel()} bytes of tensors where its header says {place}")
    return found, metadata


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _offsets(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where a tensor's bytes lie, checked to be two numbers in order."""
    offsets = entry.get("data_offsets")
    if isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(place) for place in offsets):
        begin, end = offsets
        if begin <= end:
            return begin, end
    raise ValueError(f"{name!a} has no proper place in the file")


def _tensor(piece: Tensor, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if not piece.numel():
        return torch.empty(shape, dtype=dtype)
    if piece.storage_offset() % dtype.itemsize or piece.data_ptr() % dtype.itemsize:
        piece = piece.clone()
    return piece.view(dtype).view(shape)


def _shared_tensor(buffer: Buffer) -> Tensor:
    with warnings.catch_warnings():  # torch warns that a read-only buffer must not be written: nothing here writes
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(buffer)
