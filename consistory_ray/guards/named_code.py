"""Code that is given by its name, ``package.module:name``: found for operators, and for jobs only if it is allowed.

Whoever runs the service sets ``CONSISTORY_ALLOWED_CODE``, whoever writes a job cannot: comma-separated names, or
modules, which allow all that is in them. Unset or empty allows nothing: a job file alone never decides what code runs.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

from consistory_ray.errors import InputError, Problem

VARIABLE = "CONSISTORY_ALLOWED_CODE"

_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_NAME = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}")


def is_named_code(name: str) -> bool:
    """Whether it is written as ``package.module:name``."""
    return _NAME.fullmatch(name) is not None


def check_allowed_code(field: str, name: str, environment: Mapping[str, str] | None = None) -> None:
    """Refuse code that a job names and that nobody has allowed. Nothing is imported.

    Args:
        field: what it was given as, for the message.
        name: ``package.module:name``.
        environment: instead of the process's own.

    Raises:
        InputError: it is not written so, or not allowed.
    """
    if not is_named_code(name):
        fix = "write package.module:name, such as house.rules:no_text"
        raise InputError("this is no name of code", [Problem(field, ascii(name), fix)])
    text = (os.environ if environment is None else environment).get(VARIABLE, "")
    allowed = {part.strip() for part in text.split(",") if part.strip()}
    if name not in allowed and name.partition(":")[0] not in allowed:
        fix = f"ask whoever runs this service to name it, or its module, in {VARIABLE}"
        raise InputError("this code is not allowed to be named by jobs", [Problem(field, name, fix)])


def load_named(field: str, name: str, fix: str) -> Any:
    """Import what a name says.

    Args:
        field, fix: for the message.
        name: ``package.module:name``.

    Raises:
        InputError: there is no such thing, or importing it fails.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module may raise anything while it is imported
        reason = f"{name} ({type(error).__name__}: {error})"
        raise InputError("this code cannot be loaded", [Problem(field, reason, fix)]) from error
