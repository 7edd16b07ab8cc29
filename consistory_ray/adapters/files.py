"""The one safetensors file that an adapter's path stands for: found, fetched, and its header read. No torch.

A header is read as everything from outside is, with limits; of a file in safetensors nothing but its header can lead
anywhere. Other formats are refused by their names, before a byte of them is read: unpickling runs code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from consistory_ray.adapters.names import bundled_loras, is_bundled_lora
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.guards.outside import Limits, NotAFile, open_regular, parse_json
from consistory_ray.guards.places import Place, place_of, without_credentials

PREFERRED = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Of several files in a folder or on the hub these are taken: diffusers and PEFT call them so."""

CONFIGURATION = "adapter_config.json"
"""Lies beside the file of PEFT and says how strong the adapter is."""

_SUFFIX = ".safetensors"
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_HEADER = Limits(bytes=100 << 20, values=20_000_000, depth=8)
_MAX_BYTES = 8 << 30
_BLOCK = 1 << 20
_HUB = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}(?:/[\w./-]+\.safetensors)?", re.ASCII)
_WAYS = "give a .safetensors file, a folder with one, a hub id (owner/name or owner/name/file.safetensors) or a URL"


@dataclass(frozen=True)
class Header:
    """What stands at the beginning of a safetensors file.

    Attributes:
        shapes: of the tensors by name.
        dtypes: of the same.
        metadata: text by name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def is_on_hub(path: str) -> bool:
    """Whether a path can only be an id on the hub: nothing here has that name, and it is no URL."""
    return (
        not is_bundled_lora(path)
        and "://" not in path
        and not path.endswith((*_PICKLES, f"/{_SUFFIX}"))
        and not (path.count("/") == 1 and path.endswith(_SUFFIX))
        and ".." not in path
        and _HUB.fullmatch(path) is not None
        and not os.path.exists(path)
    )


def adapter_file(where: str, path: str) -> Path | None:
    """The local file that a path stands for; None for one on the hub, which is not contacted here.

    A file behind a URL is fetched into a cache of this machine, unless it is there already and unchanged.

    Args:
        where: the field that it was given in, for messages.
        path: as in :class:`~consistory_ray.adapters.names.LoRA`.

    Raises:
        CheckpointError: it is not there, a pickle, or has another format.
    """
    if is_bundled_lora(path) and not os.path.exists(path):
        return _bundled(where, path)
    if path.lower().split("?")[0].endswith(_PICKLES):
        fix = "convert it to safetensors: pickled weights can run code and are never loaded"
        raise unusable(where, path, fix, "the file is a pickle")
    if is_on_hub(path):
        return None
    try:
        place = place_of(path, where)
    except InputError as error:
        raise CheckpointError(error.message, error.problems) from None
    if not place.is_local:
        return _fetched(where, place)
    local = Path(place.path)
    if local.is_dir():
        return _only_file(where, local)
    if not local.exists():
        raise unusable(where, path, f"there is no such file or folder: {_WAYS}", "the file is missing")
    if not place.path.lower().endswith(_SUFFIX):
        raise unusable(where, path, _WAYS, "the file has a format that is not read")
    return local


def file_digest(path: str) -> str | None:
    """SHA-256 of the file that a path stands for, in hexadecimal digits; None for hub ids.

    Read once for each state of the file.

    Raises:
        CheckpointError: as :func:`adapter_file`.
    """
    local = adapter_file("path", path)
    if local is None:
        return None
    return digest_of(local)


def digest_of(file: Path) -> str:
    """SHA-256 of a local file; read once for each state of it."""
    state = file.stat()
    return _digest(str(file), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=256)
def _digest(path: str, *_state: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_header(where: str, file: Path) -> Header:
    """The header of a local safetensors file, of which no more is read.

    Raises:
        CheckpointError: it is no such file, or not all of it is there.
    """
    try:
        with open_regular(file, follow=True) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_HEADER.bytes, max(0, size - 8)):
                raise ValueError("it does not begin as such a file does")
            values = parse_json(stream.read(length), _HEADER)
        return _header(values, size - 8 - length)
    except (NotAFile, OSError, ValueError, TypeError, KeyError) as error:
        reason = "this is no safetensors file"
        raise unusable(where, str(file), f"give a safetensors file, downloaded whole ({error})", reason) from error


def _header(values: Any, room: int) -> Header:
    if not isinstance(values, dict):
        raise ValueError("its header is no JSON object")
    metadata = values.pop("__metadata__", None) or {}
    shapes, dtypes = {}, {}
    for name, each in values.items():
        shapes[name] = tuple(int(number) for number in each["shape"])
        dtypes[name] = str(each["dtype"])
        if not 0 <= int(each["data_offsets"][0]) <= int(each["data_offsets"][1]) <= room:
            raise ValueError("it ends too early")
    return Header(shapes, dtypes, {str(key): str(value) for key, value in dict(metadata).items()})


def unusable(where: str, path: str, fix: str, reason: str) -> CheckpointError:
    """An error about one adapter."""
    return CheckpointError(reason, [Problem(where, without_credentials(path), fix)])


def chosen(where: str, path: str, names: list[str]) -> str:
    """Which of the files in a folder, or in a repository of the hub, is the adapter.

    Raises:
        CheckpointError: none is, or several may be.
    """
    for name in PREFERRED:
        if name in names:
            return name
    fitting = sorted(name for name in names if name.lower().endswith(_SUFFIX))
    if len(fitting) == 1:
        return fitting[0]
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    if fitting:
        fix = f"there are several files, name one of them: {', '.join(fitting[:10])}"
    elif pickles:
        fix = f"there are only pickles ({', '.join(pickles[:3])}), which can run code: convert one to safetensors"
    else:
        fix = "there is no .safetensors file in it"
    raise unusable(where, path, fix, "it is not clear which file to load")


def _bundled(where: str, path: str) -> Path:
    if path not in (there := bundled_loras()):
        fix = f"bundled are {', '.join(there) or 'none'}"
        raise unusable(where, path, fix, "there is no such bundled LoRA")
    name = f"{path.partition('/')[2]}{_SUFFIX}"
    return Path(str(resources.files("consistory_ray").joinpath("miniature", "loras", name)))


def _only_file(where: str, folder: Path) -> Path:
    return folder / chosen(where, str(folder), [entry.name for entry in folder.iterdir() if entry.is_file()])


def _fetched(where: str, place: Place) -> Path:
    try:
        filesystem, path = place.filesystem()
        info: Mapping[str, Any] = filesystem.info(path)
        size = info.get("size")
        if isinstance(size, int) and size > _MAX_BYTES:
            raise OSError(f"it has {size} bytes, more than the {_MAX_BYTES} that are read of such a file")
        marks = [
            str(info.get(key)) for key in ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "md5")
        ]
        name = hashlib.sha256("\n".join([place.url, *marks]).encode()).hexdigest()
        target = _cache() / f"{name}{_SUFFIX}"
        if not target.is_file():
            _copy(filesystem, path, target)
    except Exception as error:  # file systems raise all kinds: none of them is a bug here
        fix = f"check the address, the network and your rights ({type(error).__name__}: {error})"[:400]
        raise unusable(where, place.url, fix, "the file could not be fetched") from error
    return target


def _copy(filesystem: Any, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, filesystem.open(path, "rb") as source:
            while block := source.read(_BLOCK):
                if file.tell() + len(block) > _MAX_BYTES:
                    raise OSError(f"it has more than the {_MAX_BYTES} bytes that are read of such a file")
                file.write(block)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "consistory_ray" / "adapters"
