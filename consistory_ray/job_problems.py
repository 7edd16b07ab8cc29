"""Pydantic's errors in plain words: where in the file, what was found there, what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from consistory_ray.errors import Problem

Loc = tuple[str | int, ...]

MAX_PROBLEMS = 1000
_SHOWN = 60
_CUSTOM = "consistory"

_SHARE = "write a number from 0 to 1"
_SWITCH = "write true or false"
_PIXELS = "write a multiple of 8 from 64 to 8192"
_SEED = "write a whole number from 0 to 9223372036854775807"
_TEXT = "write text, in quotes if it looks like a number or true or false"

FIXES: Mapping[str, str] = {
    "name": "write a name of 1 to 200 characters, in quotes if it looks like a number",
    "model": 'write "miniature", a Hugging Face id, a folder or a .safetensors file',
    "config": "write a folder or a Hugging Face id with the configurations of a .safetensors file",
    "settings": "write a mapping such as {num_inference_steps: 50, seed: 7}",
    "subjects": "write a list with at least one subject",
    "id": "write text, in quotes if it looks like a number",
    "concept": 'write the word that names the subject in its prompts, such as "dragon", or a list of 1 to 16 words',
    "style": 'write text such as "a drawing of"',
    "subject": 'write text such as "a dragon"',
    "anchors": 'write a list of 1 to 64 scenes such as ["in the forest", "on the beach"]; two are usual',
    "scenes": 'write a list with at least one scene such as ["in space"]',
    "prompt": _TEXT,
    "from": "write the folder or URL of a stored subject such as s3://bucket/run/anchors/moss-dragon",
    "count": "write a whole number from 1 to 100000",
    "seed": _SEED,
    "torch_dtype": 'write "auto", "float32", "bfloat16" or "float16"',
    "batch_size": 'write "auto" or a whole number from 1 to 256',
    "num_inference_steps": "write a whole number from 1 to 1000",
    "guidance_scale": "write a number from 0 to 100",
    "height": _PIXELS,
    "width": _PIXELS,
    "negative_prompt": "write text, or null for none",
    "mask_dropout": _SHARE,
    "sdsa": _SWITCH,
    "query_blending": _SWITCH,
    "injection": _SWITCH,
    "freeu": "write four numbers above 0 and up to 10 such as [0.6, 0.4, 1.1, 1.2], or null for off",
    "query_blend": "write two numbers from 0 to 1 such as [0.9, 0.8]",
    "query_blend_until": _SHARE,
    "injection_window": "write two numbers from 0 to 1, the smaller one first, such as [0.1, 0.33]",
    "injection_alpha": _SHARE,
    "map_steps": "write a whole number from 1 to 1000",
    "dift_timestep": "write a whole number from 0 to 999",
}
_ITEM_FIXES: Mapping[str, str] = {
    "subjects": "write a mapping with the keys id, concept, style, subject, anchors and scenes",
    "anchors": "write text, or a mapping with the keys prompt and seed",
    "scenes": "write text, or a mapping with the keys id, prompt, seed and count",
    "concept": _TEXT,
}


def fault(fix: str) -> PydanticCustomError:
    """An error for pydantic's validators that already says what to do."""
    return PydanticCustomError(_CUSTOM, "{fix}", {"fix": fix})


def explain(
    error: ValidationError, data: Any, locate: Callable[[Loc], str], keys: Callable[[Loc], Iterable[str]]
) -> list[Problem]:
    """All problems of a document, at most one for each place.

    Args:
        error: what pydantic found in ``data``.
        data: the plain data.
        locate: gives the name of a place in the author's own file.
        keys: gives the known keys of the mapping at a place.
    """
    problems: dict[str, Problem] = {}
    for line in error.errors(include_url=False):
        loc = _real(line["loc"], data)
        if line["type"] == "missing" and isinstance(loc[-1] if loc else "", int):
            loc = loc[:-1]  # a list of fixed length that is too short
        if line["type"] == "too_short" and len(line["input"]) >= line["ctx"]["min_length"]:
            continue  # its entries have problems of their own
        where = locate(loc)
        if where not in problems:
            problems[where] = Problem(where, _found(line), _fix(line, loc, keys))
        if len(problems) == MAX_PROBLEMS:
            break
    return list(problems.values())


def path(loc: Loc) -> str:
    """A place as a reader would write it: ``subjects[2].scenes[0].prompt``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and len(part) <= _SHOWN:
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text or "the file"


def shown(value: Any) -> str:
    """A value, short and printable."""
    if isinstance(value, str):
        text = value[:_SHOWN] + "…" if len(value) > _SHOWN else value
        return json.dumps(text, ensure_ascii=not text.isprintable())
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    return str(value)[:_SHOWN]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean "scenes"?`` or nothing."""
    close = difflib.get_close_matches(word[:_SHOWN].lower(), list(known), n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _real(loc: Loc, data: Any) -> Loc:
    """A place without the steps pydantic adds for branches of a union and for a string that stands for a mapping."""
    kept: list[str | int] = []
    for part in loc:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, Sequence) and not isinstance(data, str) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            break
        kept.append(part)
    return tuple(kept)


def _found(line: Any) -> str:
    return "" if line["type"] == "missing" and isinstance(line["loc"][-1], str) else shown(line["input"])


def _fix(line: Any, loc: Loc, keys: Callable[[Loc], Iterable[str]]) -> str:
    kind, last = line["type"], loc[-1] if loc else ""
    if kind == _CUSTOM:
        return str(line["ctx"]["fix"])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = list(keys(loc[:-1]))
        return f"remove this key{did_you_mean(str(last), known) or ', known are ' + ', '.join(known)}"
    if kind == "missing" and isinstance(line["loc"][-1], str):
        return f"this key is missing, {_known_fix(loc)}"
    if isinstance(last, int):
        owner = str(loc[-2])
        return _ITEM_FIXES.get(owner, FIXES.get(owner, ""))
    return _known_fix(loc)


def _known_fix(loc: Loc) -> str:
    """What to write at a place, or at the innermost one around it that is known."""
    known = (FIXES[part] for part in reversed(loc) if isinstance(part, str) and part in FIXES)
    return next(known, "write a mapping with the keys name, model, settings and subjects")
