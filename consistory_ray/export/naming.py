"""File names of an export: a template in jinja2, filled in for each picture, safe on every system.

A template is ``{{ subject }}/{{ scene }}_{{ take }}.{{ ending }}``; single braces (``{subject}/{scene}.png``) mean the
same. It runs in jinja2's sandbox, and a variable that does not exist is an error. Values are made into parts of file
names before they are put in, so that only the template itself makes folders. All names are known, and compared, before
anything is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from consistory_ray.errors import InputError, Problem
from consistory_ray.export.selection import Source

VARIABLES = ("subject", "scene", "take", "kind", "seed", "asset_id", "profile", "width", "height", "ending")
ONE_TAKE = "{{ subject }}/{{ scene }}.{{ ending }}"
ALL_TAKES = "{{ subject }}/{{ scene }}_{{ take }}.{{ ending }}"
ENDINGS = ("png", "webp")
MAX_TEMPLATE = 2000
MAX_PART = 200
"""Bytes of a folder's or file's name: file systems allow 255, and what is being written has a longer name."""
MAX_NAME = 1000
_SINGLE = re.compile(r"(?<!\{)\{\s*([a-z_]+)\s*\}(?!\})")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))])
_SHOWN = 5


def file_part(value: object) -> str:
    """A value as part of a file name: what some system forbids becomes ``_``."""
    text = unicodedata.normalize("NFC", str(value))
    return "".join("_" if not c.isprintable() else c for c in _FORBIDDEN.sub("_", text))


def ending_of(template: str) -> str | None:
    """The picture format that a template asks for by its last letters; None where it leaves that open."""
    _, dot, ending = template.rpartition(".")
    return ending.lower() if dot and ending.lower() in ENDINGS else None


def namer(template: str, ending: str) -> Callable[[Source], str]:
    """What names pictures by a template.

    Args:
        template: see the module; names that do not end in the format's ending get it.
        ending: ``png`` or ``webp``.

    Raises:
        InputError: the template cannot be read, or ends like another format.
    """
    if len(template) > MAX_TEMPLATE:
        raise _bad(template[:80] + "…", f"use at most {MAX_TEMPLATE} characters")
    if ending_of(template) not in (None, ending):
        raise _bad(template, f"end it in .{ending} or .{{{{ ending }}}}, or give the --format that it ends in")
    environment = SandboxedEnvironment(undefined=StrictUndefined, finalize=file_part, autoescape=False)
    try:
        compiled = environment.from_string(_SINGLE.sub(r"{{ \1 }}", template))
    except TemplateError as error:
        raise _bad(template, f"use jinja2's {{{{ … }}}}: {error}") from error

    def name(source: Source) -> str:
        values: dict[str, Any] = {variable: getattr(source, variable, ending) for variable in VARIABLES}
        values["profile"] = source.profile or "exact"
        try:
            return _safe_path(compiled.render(values), ending)
        except InputError:
            raise
        except Exception as error:  # a template is a program of somebody's: it may divide by zero
            fix = f"its variables are {', '.join(VARIABLES)}: {error}"
            raise _bad(template, fix) from error

    return name


def named(sources: Sequence[Source], template: str, ending: str) -> dict[str, Source]:
    """The file name of each picture, relative to the export's folder, in the order given.

    Raises:
        InputError: the template cannot be used, a name would leave the folder, or two pictures would get one name (on
            some system: names that differ in their case alone are one name on many).
    """
    name = namer(template, ending)
    names: dict[str, Source] = {}
    folded: dict[str, Source] = {}
    clashes: list[Problem] = []
    for source in sources:
        path = name(source)
        other = folded.setdefault(path.casefold(), source)
        if other is not source:
            both = f"{_told(other)} and {_told(source)}"
            clashes.append(Problem("--layout", path, f"tell {both} apart, for example with {{{{ take }}}} or asset_id"))
        else:
            names[path] = source
    folders = {parent for path in folded for parent in _parents(path)}
    clashes += [
        Problem("--layout", path, f"{_told(folded[path])} would be a file where others need a folder")
        for path in sorted(folders & folded.keys())
    ]
    if clashes:
        more = f", and {len(clashes) - _SHOWN} more" if len(clashes) > _SHOWN else ""
        raise InputError(f"pictures would overwrite each other{more}", clashes[:_SHOWN])
    return names


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _safe_path(rendered: str, ending: str) -> str:
    """A rendered template as a path below the folder.

    Raises:
        InputError: it is none.
    """
    parts = rendered.split("/")
    if "" in parts or ".." in parts or "." in parts:
        raise _bad(ascii(rendered), "make a relative path below the folder, without empty parts, '.' and '..'")
    path = "/".join(_safe_part(part) for part in parts)
    path = path if path.lower().endswith(f".{ending}") else f"{path}.{ending}"
    if len(path.encode()) > MAX_NAME:
        raise _bad(path[:80] + "…", f"make names of at most {MAX_NAME} bytes")
    return path


def _safe_part(part: str) -> str:
    """A folder's or file's name that every system takes.

    Raises:
        InputError: it is too long.
    """
    part = file_part(part).strip().rstrip(". ")
    if not part or part.startswith("."):  # hidden, and the export's own folder is
        part = f"_{part}"
    if part.split(".", 1)[0].lower() in _DEVICES:
        part = f"_{part}"
    if len(part.encode()) > MAX_PART:
        raise _bad(part[:80] + "…", f"make names of at most {MAX_PART} bytes between slashes")
    return part


def _told(source: Source) -> str:
    return f"{source.path} ({source.asset_id[:8]}, take {source.take})"


def _bad(value: str, fix: str) -> InputError:
    return InputError("the layout cannot be used", [Problem("--layout", value, fix)])
