"""Which places a run may read from and write to: the prefixes in ``CONSISTORY_ALLOWED_URLS``.

Whoever runs the service sets the variable, whoever writes a job cannot. Comma-separated prefixes; unset or empty allows
everything. A prefix ends where a path segment ends: ``s3://bucket/team`` allows ``s3://bucket/team/run`` and neither
``s3://bucket/team-2`` nor ``s3://bucket``. What an address leads to is decided by :mod:`consistory_ray.guards.places`,
as for everything that opens one. Local paths are ``file://`` URLs with links resolved, ids on the Hugging Face hub are
``hf://owner/name``. Pure: nothing is opened or contacted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.places import place_of, without_user
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.settings import BUNDLED_MODEL

VARIABLE = "CONSISTORY_ALLOWED_URLS"

Place = tuple[str, str, tuple[str, ...]]
"""Scheme, authority (host and port, or bucket) and path segments."""

_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "adl": "abfs"}
_PORTS = {"http": ":80", "https": ":443"}
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*://|(file|local):/|[/~]")


class _Refused(ValueError):
    """Why an address cannot be placed."""


def allowed_urls(environment: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """The prefixes that are set, or None where everything is allowed."""
    text = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    return tuple(prefix for part in text.split(",") if (prefix := part.strip())) if text else None


def check_allowed(field: str, url: str, environment: Mapping[str, str] | None = None) -> None:
    """Refuse an address that is under none of the allowed prefixes.

    Args:
        field: what the address was given as, for the message.
        url: an fsspec URL or a local path.
        environment: instead of the process's own.

    Raises:
        InputError: it is not allowed, cannot be told apart from one that is not, or a prefix is unusable.
    """
    prefixes = allowed_urls(environment)
    if prefixes is None:
        return
    places = [_prefix(prefix) for prefix in prefixes]
    try:
        place = _place(url)
    except _Refused as error:
        raise _not_allowed(field, url, str(error)) from None
    if not any(_covers(prefix, place) for prefix in places):
        raise _not_allowed(field, url, f"use a place under {' or '.join(prefixes) or 'none: all are closed'}")


def check_allowed_model(model: str, environment: Mapping[str, str] | None = None, *, field: str = "model") -> None:
    """:func:`check_allowed` for a job's ``model`` (or ``config``), which may be the bundled one, a path or a hub id.

    Raises:
        InputError: it is not allowed.
    """
    if model == BUNDLED_MODEL:
        return
    hub = is_hub_id(model) and not os.path.exists(model)
    check_allowed(field, f"hf://{model}" if hub else model, environment)


def _covers(prefix: Place, place: Place) -> bool:
    scheme, authority, path = prefix
    if scheme != place[0] or (authority and authority != place[1]) or (path and not authority and scheme != "file"):
        return False
    return place[2][: len(path)] == path


def _prefix(text: str) -> Place:
    try:
        if not _ABSOLUTE.match(text):
            raise _Refused("write a URL such as s3://bucket/folder, or an absolute path")
        return _place(text)
    except _Refused as error:
        raise InputError("the allow-list cannot be used", [Problem(VARIABLE, _shown(text), str(error))]) from None


def _place(url: str) -> Place:
    """Where an address leads.

    Raises:
        _Refused: it is written in a way that other programs may read differently.
    """
    if not url.strip() or not url.isprintable() or url != url.strip():
        raise _Refused("write it without blanks at its ends and unprintable characters")
    try:
        place = place_of(url)
    except InputError as error:
        raise _Refused(error.problems[0].fix) from None
    if place.scheme == "chain":
        raise _Refused("chained and data URLs are not allowed")
    scheme, rest = _ALIASES.get(place.scheme, place.scheme), place.path
    if "\\" in rest or ".." in re.split(r"[/\\]", _decoded(rest).split("?")[0]) or ".." in _segments(rest):
        raise _Refused("write the path without '..' and backslashes")
    if scheme == "file":
        return scheme, "", _segments(os.path.realpath(rest))
    if scheme in _PORTS:
        parts = urlsplit(f"{scheme}://{rest}")
        authority = parts.netloc.rpartition("@")[2].lower().removesuffix(_PORTS[scheme])
        return scheme, authority, _segments(parts.path)
    authority, _, path = rest.partition("/")  # in a bucket "?" and "#" are letters like any other
    return scheme, authority, _segments(path)


def _segments(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _decoded(text: str) -> str:
    """Percent-decoded until nothing changes: a server may decode more than once."""
    while (once := unquote(text)) != text:
        text = once
    return text


def _not_allowed(field: str, url: str, fix: str) -> InputError:
    return InputError("this place is not allowed here", [Problem(field, _shown(url), f"{fix} ({VARIABLE})")])


def _shown(url: str) -> str:
    return ascii(without_user(url.split("?")[0]))[1:-1]
