"""Which texts of a job are dynamic prompts, and what is wrong with them.

As in :mod:`consistory_ray.jobs.checks` models and plain dicts are read alike, and what has the wrong type is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consistory_ray.guards.problems import Loc
from consistory_ray.jobs.checks import MAX_PICTURES, Finding
from consistory_ray.jobs.fields import MAX_TEXT, entries, field
from consistory_ray.jobs.template_draws import UNCOUNTED, Lists
from consistory_ray.jobs.templates import TemplateError, name_problem, parse, parse_option

MAX_EXPANDED = 100_000
"""How many pictures one scene may become by ``expand: all``."""
MAX_DRAWN = 1 << 30
"""How many characters all prompts of a job that are drawn may have together."""
LOOKS = ("style", "subject", "details")
"""The texts that are drawn once for a subject, so that it stays one individual."""


def is_dynamic(job: Any, subject: Any) -> bool:
    """Whether a subject's prompts are dynamic: as it says itself, or as the job says of all."""
    own = field(subject, "dynamic_prompts")
    return (field(job, "dynamic_prompts") if own is None else own) is True


def dynamic_texts(job: Any) -> Iterator[tuple[Loc, str]]:
    """Every text of a job that is a dynamic prompt, and where it stands."""
    for number, subject in entries(job, "subjects"):
        if not is_dynamic(job, subject):
            continue
        for name in LOOKS:
            if isinstance(text := field(subject, name), str):
                yield ("subjects", number, name), text
        stored = field(subject, "sources") or field(
            subject, "from"
        )  # the words of its anchors were drawn when it was made
        for name in ("scenes",) if stored else ("anchors", "pictures", "scenes"):
            for index, entry in entries(subject, name):
                bare = isinstance(entry, str) and name != "pictures"
                if isinstance(text := entry if bare else field(entry, "prompt"), str):
                    yield ("subjects", number, name, index, *(() if bare else ("prompt",))), text


def dynamic_findings(job: Any) -> Iterator[Finding]:
    """Dynamic prompts that cannot be drawn from, lists that cannot be read, and scenes that become too many."""
    found: list[Finding] = []
    lists = Lists(_good_lines(field(job, "wildcards"), found))
    yield from found
    told: dict[str, tuple[str, str] | None] = {}
    for loc, text in dynamic_texts(job):
        if len(text) > MAX_TEXT:
            continue
        if text not in told:
            told[text] = _text_problem(text, lists)
        if (problem := told[text]) is not None:
            yield Finding(loc, *problem)
    yield from _size_findings(job, lists)


def _good_lines(wildcards: Any, found: list[Finding]) -> dict[str, Sequence[str]]:
    """The lists of a job without what is wrong in them."""
    lists: dict[str, Sequence[str]] = {}
    for name, lines in wildcards.items() if isinstance(wildcards, Mapping) else ():
        if not isinstance(name, str) or not isinstance(lines, (list, tuple)):
            continue
        if fix := name_problem(name):
            found.append(Finding(("wildcards", name), name, fix))
        bad = set()
        for index, line in enumerate(lines):
            try:
                parse_option(line if isinstance(line, str) else "")
            except TemplateError as error:
                bad.add(index)
                found.append(Finding(("wildcards", name, index), error.found, error.fix))
        lists[name] = [line for index, line in enumerate(lines) if isinstance(line, str) and index not in bad]
    return lists


def _text_problem(text: str, lists: Lists) -> tuple[str, str] | None:
    try:
        parts = parse(text)
        lists.check(parts)
    except TemplateError as error:
        return error.found, error.fix
    if (longest := lists.longest(parts)) > MAX_TEXT:
        return text, f"it can become {longest} characters long: shorten it, or its lists, to at most {MAX_TEXT}"
    return None


def _size_findings(job: Any, lists: Lists) -> Iterator[Finding]:
    """Scenes that become too many pictures, or pictures with too many words of their own."""
    pictures = characters = 0
    known: dict[str, tuple[int, int]] = {}
    for number, subject in entries(job, "subjects"):
        dynamic = is_dynamic(job, subject)
        poses = max(1, sum(1 for _ in entries(subject, "poses")))
        for index, scene in entries(subject, "scenes"):
            if not dynamic and isinstance(scene, (str, int)):
                continue
            loc = ("subjects", number, "scenes", index, "expand")
            every = field(scene, "expand") == "all"
            if every and not dynamic:
                fix = "write dynamic_prompts: true at the top of the job: without it nothing is chosen"
                yield Finding(loc, "all", fix)
            if not dynamic:
                continue
            text = scene if isinstance(scene, str) else field(scene, "prompt")
            if not isinstance(text, str) or len(text) > MAX_TEXT:
                continue
            if text not in known:
                known[text] = _size(text, lists)
            variants, longest = known[text]
            count = _whole(field(scene, "count")) or 1
            made = count * variants if every else count
            pictures += made * poses if every else 0
            characters += made * longest if variants > 1 else 0
            if made > MAX_EXPANDED and every:
                told = f"{made} pictures" if made < UNCOUNTED else f"more than {UNCOUNTED} pictures"
                fix = f"leave it out to have count of them drawn, a scene may become {MAX_EXPANDED} pictures at most"
                yield Finding(loc, told, fix)
                return
    if pictures > MAX_PICTURES:
        fix = f"split the job, it may have {MAX_PICTURES} pictures at most"
        yield Finding(("subjects",), f"{pictures} pictures", fix)
    elif characters > MAX_DRAWN:
        fix = f"split the job, what it draws may have {MAX_DRAWN >> 20} million characters at most"
        yield Finding(("subjects",), f"up to {characters} characters in prompts that are drawn", fix)


def _size(text: str, lists: Lists) -> tuple[int, int]:
    """How many texts a prompt can become and how long they are; of what cannot be read, which is told elsewhere, 1."""
    try:
        parts = parse(text)
        lists.check(parts)
    except TemplateError:
        return 1, 1
    return lists.variants(parts), lists.longest(parts)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
