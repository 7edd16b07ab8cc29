"""Functions of the user's own that an export calls with every picture: watermarks, and checks that may reject one.

They are named on the command line, ``package.module:function``, by whoever runs the export. Where
``CONSISTORY_ALLOWED_CODE`` is set, it holds for them as for the code that jobs name; where it is not, they may be
named: who types a command runs code anyway. They are called in the processes that make pictures, by name.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from consistory_ray.errors import AssetError, InputError, Problem
from consistory_ray.export.pictures import Picture, Step
from consistory_ray.guards.named_code import VARIABLE, check_allowed_code, is_named_code, load_named
from consistory_ray.quality.checks import Check, finding, load_checks

Watermark: TypeAlias = Callable[[Image.Image], Image.Image]
"""From a picture, RGB or RGBA, to one of the same size and mode in which the mark is."""
_FIX = "give package.module:function, a function that takes a picture and returns one of the same size and mode"
_CHECK_FIX = "give package.module:function, a function that takes a picture and returns a reason or None"


def watermark(name: str) -> Step:
    """The last step of a picture's way, which puts a mark into it.

    Raises:
        InputError: there is no such function, or it is not allowed.
    """
    _refuse("--watermark", name, _FIX)
    _loaded_watermark(name)
    return partial(_marked, name=name)


def checks(names: Sequence[str]) -> tuple[str, ...]:
    """Names of checks that there are.

    Raises:
        InputError: there is no such function, or it is not allowed.
    """
    for name in names:
        _refuse("--check", name, _CHECK_FIX)
    load_checks(names, "--check")
    return tuple(names)


def rejection(picture: Picture, names: tuple[str, ...]) -> str | None:
    """What the first check that finds something says of a picture as it was rendered; None if none does.

    Raises:
        AssetError: a check fails: the picture is not taken for harmless.
    """
    return finding(_loaded_checks(names), names, picture.image)


def digest_of(name: str) -> str:
    """16 hexadecimal digits of the function's name and of the file that it is in: pictures are made anew when that has
    changed. What the file imports does not count."""
    try:
        source = Path(inspect.getfile(inspect.unwrap(load_named("", name, "")))).read_bytes()
    except (OSError, TypeError):  # built in, or an object of a class
        source = b""
    return hashlib.sha256(name.encode() + b"\0" + source).hexdigest()[:16]


def _refuse(option: str, name: str, fix: str) -> None:
    if not is_named_code(name):
        raise InputError("this is no name of code", [Problem(option, ascii(name), fix)])
    if os.environ.get(VARIABLE, "").strip():
        check_allowed_code(option, name)


def _marked(picture: Picture, name: str) -> Picture:
    """A picture with its mark."""
    before = picture.image
    try:
        after: Any = _loaded_watermark(name)(before.copy())
    except Exception as error:  # somebody else's code
        raise AssetError(f"the watermark {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(after, Image.Image):
        raise AssetError(f"the watermark {name} must return a picture, got {type(after).__name__}")
    if (after.size, after.mode) != (before.size, before.mode):
        made, needed = (f"{one.mode} of {one.width} x {one.height} pixels" for one in (after, before))
        raise AssetError(f"the watermark {name} must return {needed}, got {made}")
    return replace(picture, image=after, file=None)


@lru_cache(maxsize=8)
def _loaded_watermark(name: str) -> Watermark:
    function = load_named("--watermark", name, _FIX)
    if not callable(function):
        raise InputError("this watermark is no function", [Problem("--watermark", name, _FIX)])
    found: Watermark = function
    return found


@lru_cache(maxsize=8)
def _loaded_checks(names: tuple[str, ...]) -> tuple[Check, ...]:
    return load_checks(names, "--check")
