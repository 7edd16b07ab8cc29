"""House rules: ``check(image) -> reason | None``, called with every picture before it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from consistory_ray.errors import AssetError, InputError, Problem
from consistory_ray.guards.named_code import load_named

if TYPE_CHECKING:
    from PIL.Image import Image

Check: TypeAlias = "Callable[[Image], str | None]"
"""Looks at an RGB picture; says why it must not be kept, or None."""

_FIX = "give package.module:function, a function that takes a picture and returns a reason or None"


def load_checks(names: Sequence[str], field: str = "checks") -> tuple[Check, ...]:
    """The functions behind names; those that jobs give have to pass
    :func:`~consistory_ray.guards.named_code.check_allowed_code` before.

    Raises:
        InputError: there is no such function, or importing it fails.
    """
    checks = []
    for number, name in enumerate(names):
        check = load_named(f"{field}[{number}]", name, _FIX)
        if not callable(check):
            raise InputError("this check is no function", [Problem(f"{field}[{number}]", name, _FIX)])
        checks.append(check)
    return tuple(checks)


def finding(checks: Sequence[Check], names: Sequence[str], image: Image) -> str | None:
    """What the first check that finds something says, with its name; None if none does.

    Raises:
        AssetError: a check fails, or says something that is no text: the picture is not taken for harmless.
    """
    for check, name in zip(checks, names, strict=True):
        try:
            reason = check(image.convert("RGB"))
        except Exception as error:
            raise AssetError(f"the check {name} failed: {type(error).__name__}: {error}") from error
        if reason is None:
            continue
        if not isinstance(reason, str) or not reason.strip():
            raise AssetError(f"the check {name} must return a reason or None, got {reason!r}")
        return f"{name}: {reason.strip()}"
    return None
