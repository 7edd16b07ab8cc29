"""YAML without its traps: no tags, no duplicate keys, no exploding aliases, and the types of YAML 1.2's core schema.

Values are built straight from the parser's events, so a file of a million prompts needs no tree of nodes, and what a
file may cost is counted while it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from consistory_ray.errors import Problem
from consistory_ray.guards.problems import IN_QUOTES, MAX_PROBLEMS, path, shown

MAX_DEPTH = 32
MAX_VALUES = 8_000_000
MAX_KEYS = 1_000

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,5})?")
_LONGEST_NUMBER = 24
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Broken(Exception):
    """Reading stops here; the problem says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Collection:
    """A mapping or list under construction."""

    __slots__ = ("anchor", "key", "key_line", "size", "value")

    def __init__(self, value: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.value = value
        self.anchor = anchor
        self.key: str | None = None
        self.key_line = 0
        self.size = 1


def read_yaml(text: str) -> tuple[Any, list[Problem]]:
    """The plain value of a document of one YAML file, and what is wrong with it.

    Returns:
        the value (None if the file is broken or empty) and the problems found; a duplicate key keeps its first value.
    """
    builder = _Builder()
    try:
        builder.run(yaml.parse(text, Loader=_LOADER))
    except _Broken as error:
        return None, [*builder.problems, error.problem]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
        return None, [
            *builder.problems,
            Problem(where, "", f"the YAML is broken here: {error.problem or error.context}; {IN_QUOTES}"),
        ]
    except yaml.reader.ReaderError as error:
        value = f"character {error.character!r}" if isinstance(error.character, str) else f"U+{error.character:04X}"
        return None, [Problem(f"character {error.position}", value, "remove this unprintable character")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return None, [*builder.problems, Problem("the file", shown(str(error)), "the YAML is broken")]
    return builder.result, builder.problems


class _Builder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.result: Any = None
        self._stack: list[_Collection] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0
        self._documents = 0

    def run(self, events: Iterator[Any]) -> None:
        for event in events:
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._scalar(event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self._open(event, {} if kind is yaml.MappingStartEvent else [])
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._close(event)
            elif kind is yaml.AliasEvent:
                self._alias(event)
            elif kind is yaml.DocumentStartEvent:
                self._documents += 1
                if self._documents > 1:
                    raise self._broken(event, "---", "write one document in a file")

    def _scalar(self, event: Any) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and top.key is None and isinstance(top.value, dict):
            if event.anchor:
                self._anchors[event.anchor] = (event.value, 1)
            self._key(top, event.value, event)
            return
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._untagged(event)
        value = plain(event.value) if event.implicit[0] and event.tag is None else event.value
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        self._add(value, 1, event)

    def _key(self, top: _Collection, key: str, event: Any) -> None:
        if key == "<<" and event.style in (None, ""):
            raise self._broken(event, "<<", "merge keys are not part of YAML 1.2, write the keys out")
        top.key, top.key_line = key, event.start_mark.line + 1

    def _open(self, event: Any, value: dict[str, Any] | list[Any]) -> None:
        if event.tag is not None:
            self._untagged(event)
        if len(self._stack) == MAX_DEPTH:
            raise self._broken(event, "", f"nest mappings and lists at most {MAX_DEPTH} deep")
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise self._broken(event, shown(value), "write text as the key of a mapping")
        self._stack.append(_Collection(value, event.anchor))

    def _close(self, event: Any) -> None:
        done = self._stack.pop()
        if done.anchor:
            self._anchors[done.anchor] = (done.value, done.size)
        self._add(done.value, done.size, event)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise self._broken(event, f"*{event.anchor}"[:60], f"define this anchor before it is used; {IN_QUOTES}")
        value, size = self._anchors[event.anchor]
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            if not isinstance(value, str):
                raise self._broken(event, shown(value), "write text as the key of a mapping")
            self._key(top, value, event)
        else:
            self._add(value, size, event)

    def _add(self, value: Any, size: int, event: Any) -> None:
        """Puts a finished value where it belongs; ``size`` counts what it would be with its aliases written out."""
        self._values += 1
        if not self._stack:
            self.result = value
            return
        top = self._stack[-1]
        top.size += size
        if max(top.size, self._values) > MAX_VALUES:
            raise self._broken(event, f"more than {MAX_VALUES} values", "split the job, and use fewer aliases")
        if isinstance(top.value, list):
            top.value.append(value)
            return
        key, top.key = str(top.key), None
        if key in top.value:
            if len(self.problems) == MAX_PROBLEMS:
                raise self._broken(event, "", "too many keys occur twice")
            where = path((*self._place(), key))
            self.problems.append(
                Problem(where, f"line {top.key_line}", "this key occurs twice in one mapping, keep one")
            )
        elif len(top.value) == MAX_KEYS:
            raise self._broken(event, f"more than {MAX_KEYS} keys", "a mapping of a job has a few keys")
        else:
            top.value[key] = value

    def _place(self) -> tuple[str | int, ...]:
        """Where the innermost open collection will stand."""
        return tuple(
            len(owner.value) if isinstance(owner.value, list) else str(owner.key) for owner in self._stack[:-1]
        )

    def _untagged(self, event: Any) -> None:
        raise self._broken(
            event, event.tag[:60], f"remove the tag, a job holds only text, numbers, true, false and null; {IN_QUOTES}"
        )

    def _broken(self, event: Any, value: str, fix: str) -> _Broken:
        mark = event.start_mark
        return _Broken(Problem(f"line {mark.line + 1}, column {mark.column + 1}", value, fix))


def plain(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema; a number too long to be one stays text."""
    if text in _WORDS:
        return _WORDS[text]
    if text[:1] in "0123456789+-." and len(text) <= _LONGEST_NUMBER:
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text
