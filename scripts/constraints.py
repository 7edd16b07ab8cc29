"""Prints constraints.txt: the versions, in the environment this runs in, of all that the package and its extras need.

Run it with the Python of an environment in which the whole test suite has passed.
"""

from __future__ import annotations

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

NAME = "consistory-ray"
LEFT_OUT = {"pip"}  # cannot replace itself
HEADER = """\
# The exact versions this project is tested with, on Python 3.11; scripts/constraints.py writes this file.
# Where a version needs a newer Python than the oldest one supported, the range in pyproject.toml decides there."""


def closure(extras: list[str] | None = None) -> dict[str, metadata.Distribution]:
    """Every distribution that the package with some extras (None is all) needs here, by canonical name."""
    if extras is None:
        extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
    waiting, seen = [Requirement(f"{NAME}[{','.join(extras)}]")], set()
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in LEFT_OUT or (name, *sorted(wanted.extras)) in seen:
            continue
        seen.add((name, *sorted(wanted.extras)))
        found[name] = metadata.distribution(wanted.name)
        for text in found[name].requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(needed)
    del found[NAME]
    return found


def line(name: str, distribution: metadata.Distribution) -> str:
    """A constraint, without the mark of a local build, and only for the Pythons the version supports."""
    allowed = SpecifierSet(distribution.metadata["Requires-Python"] or "")
    oldest = next(minor for minor in range(10, 20) if allowed.contains(f"3.{minor}.9"))
    marker = f' ; python_version >= "3.{oldest}"' if oldest > 10 else ""
    return f"{name}=={re.sub(r'[+].*', '', distribution.version)}{marker}"


if __name__ == "__main__":
    print(HEADER)
    for item in sorted(closure().items()):
        print(line(*item))
