"""What must hold in a job beyond its fields' types: concepts in prompts, unique ids, distinct pictures, not too many.

The checks read models and plain dicts alike and skip what has the wrong type, so that they can run beside pydantic's
own checks and a file's author sees everything at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.concepts.matching import find_concepts, mentions, stands
from consistory_ray.errors import Problem
from consistory_ray.guards.problems import FIXES, Loc, shown
from consistory_ray.jobs.fields import MAX_TEXT, Entry, entries, field, matrix_size, text_field

MAX_SEED = 2**63 - 1
MAX_PICTURES = 2_000_000

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = 16
_MOST = {"concept": 16, "anchors": 64, "pictures": 8}
_TOLD = 20
_COUNTED = re.compile(r"(.+)-(0|[1-9][0-9]{0,6})")
_ANCHOR_ID = re.compile(r"anchor-[0-9]+", re.IGNORECASE)

MISSING: Any = object()
"""The value of a finding about a key that has to be there."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong, at ``loc`` relative to the value that was checked."""

    loc: tuple[str | int, ...]
    value: Any
    fix: str


class Prompted(Protocol):
    """A picture to make; :class:`~consistory_ray.plan.plan.Asset` is one."""

    @property
    def asset_id(self) -> str: ...
    @property
    def prompt(self) -> str: ...


def oversized(data: Any) -> list[tuple[Loc, Problem]]:
    """Where a job has more pictures, anchors or concepts than any may have, before anything in it is checked or copied.

    Lists that stand in several places of a file by an alias are counted once and added up, so that this takes as long
    as the file took to read, whatever it would be written out.

    Args:
        data: the plain data of a job.
    """
    subjects = data.get("subjects") if isinstance(data, Mapping) else None
    if not isinstance(subjects, (list, tuple)):
        return []
    found: list[tuple[Loc, Problem]] = []
    counted: dict[int, int] = {}
    pictures, takes = 0, _takes(data)
    for index, subject in enumerate(subjects):
        if not isinstance(subject, Mapping):
            continue
        for name, most in _MOST.items():
            value = subject.get(name)
            if isinstance(value, (list, tuple)) and len(value) > most and len(found) < _TOLD:
                found.append((("subjects", index, name), Problem("", f"a list of {len(value)}", FIXES[name])))
        scenes = subject.get("scenes")
        pictures += matrix_size(subject.get("matrix")) * takes
        if isinstance(scenes, (list, tuple)):
            if id(scenes) not in counted:
                counted[id(scenes)] = len(scenes) if len(scenes) > MAX_PICTURES else sum(map(_count, scenes))
            pictures += counted[id(scenes)] * takes
    if max(pictures, len(subjects)) > MAX_PICTURES:
        value = f"{pictures} pictures" if pictures > MAX_PICTURES else f"{len(subjects)} subjects"
        fix = f"split the job, it may have {MAX_PICTURES} pictures at most"
        found.append((("subjects",), Problem("", value, fix)))
    return found


def check_text(value: str) -> tuple[str, str | None]:
    """A text in normal form (NFC, single spaces), and what to change about it if it cannot be used."""
    if len(value) > MAX_TEXT:
        return value, f"shorten it to at most {MAX_TEXT} characters"
    text = " ".join(value.split())
    if not text:
        return text, "write some text here"
    bad = _UNPRINTABLE.search(text if text.isascii() else value)
    if bad:
        return text, f"remove the unprintable character U+{ord(bad.group()):04X}"
    return (text if text.isascii() else unicodedata.normalize("NFC", text)), None


def join_prompt(style: str, subject: str, scene: str) -> str:
    """The whole prompt: the parts that are not empty, with a space between them."""
    return " ".join(part for part in (style, subject, scene) if part)


def scene_head(style: str, subject: str, details: str, concepts: Sequence[str]) -> str:
    """What the prompts of all scenes begin with; details that name every concept stand in the subject's place."""
    instead = bool(details) and bool(concepts) and all(mentions(details, concept) for concept in concepts)
    return join_prompt(style, "" if instead else subject, details)


def subject_findings(subject: Any) -> Iterator[Finding]:
    """Problems of one subject: what shows it, its prompts, its scene ids, its seeds."""
    scenes = list(entries(subject, "scenes"))
    if _has(subject, "anchors") and _has(subject, "pictures"):
        fix = "leave out anchors or pictures: a subject is made of words, or of pictures that are given"
        yield Finding(("pictures",), field(subject, "pictures"), fix)
    is_subject = isinstance(subject, Mapping) or hasattr(subject, "scenes")
    if is_subject and not _has(subject, "scenes"):
        yield Finding(("scenes",), MISSING, "")
    if is_subject and not _has(subject, "anchors") and not _has(subject, "pictures"):
        yield Finding(("anchors",), MISSING, "")
    yield from _concept_findings(subject, scenes)
    yield from _scene_id_findings(scenes)
    yield from _seed_findings(scenes)
    yield from _pose_findings(subject)


def _concept_findings(subject: Any, scenes: list[Entry]) -> Iterator[Finding]:
    """Anchors show all concepts, a scene at least one: without that there is nothing to keep the same."""
    style, text, concepts = _written_text(subject, "style"), _written_text(subject, "subject"), _concepts(subject)
    details = _written_text(subject, "details")
    if style is None or text is None or details is None or field(subject, "on_missing_concept") == "skip":
        return
    if field(subject, "dynamic_prompts") is True:  # what is drawn is looked at when it is planned
        return
    head = join_prompt(style, text, "")
    missing = [concept for concept in concepts if not mentions(head, concept)]
    made = field(subject, "sources") or field(subject, "from")  # of subjects that meet, each anchor shows its own
    for name, who in (("anchors", "an anchor"), ("pictures", "a picture")) if missing and not made else ():
        for index, shown_by in entries(subject, name):
            prompt = "" if name == "pictures" and isinstance(shown_by, str) else _prompt(shown_by)
            absent = lacking_in_anchor(join_prompt(style, text, prompt), concepts)
            if absent and (prompt or name == "pictures"):
                yield Finding((name, index, "prompt"), prompt, must_contain(who, absent, " and "))
    if details:
        head = scene_head(style, text, details, concepts)
        missing = [concept for concept in concepts if not mentions(head, concept)]
    everywhere = len(missing) < len(concepts) or any(stands(head, concept) for concept in missing)
    for index, scene in scenes if concepts and not everywhere else ():
        prompt = _prompt(scene)
        if prompt and lacks_all(join_prompt(head, prompt, ""), concepts):
            yield Finding(("scenes", index, "prompt"), prompt, must_contain("a scene", concepts, " or "))


def lacking_in_anchor(prompt: str, concepts: Sequence[str]) -> list[str]:
    """The concepts of which nothing stands in an anchor's prompt."""
    if all(mentions(prompt, concept) for concept in concepts):
        return []
    found = find_concepts(prompt, concepts, every=True)
    return [concept for concept, match in zip(concepts, found, strict=True) if match is None]


def lacks_all(prompt: str, concepts: Sequence[str]) -> bool:
    """Whether nothing of any concept stands in a scene's prompt."""
    return not any(stands(prompt, concept) for concept in concepts)


def impossible(
    anchors: Sequence[Prompted], scenes: Sequence[Prompted], concepts: Sequence[str], syntax: str = "plain"
) -> tuple[tuple[str, str], ...]:
    """The ids of the pictures that cannot be made since their prompts lack a concept, each with the reason.

    An anchor that lacks a concept takes all of its subject's pictures with it, a scene only itself.

    Args:
        anchors, scenes, concepts: of a subject.
        syntax: in which its prompts are written, ``plain`` or ``compel``.
    """
    for number, anchor in enumerate(anchors):
        if absent := lacking_in_anchor(plain_text(anchor.prompt, syntax), concepts):
            reason = (
                f"the prompt of anchor-{number} contains nothing of {_listed(absent, ' and ')}: {shown(anchor.prompt)}"
            )
            return tuple((asset.asset_id, reason) for asset in (*anchors, *scenes))
    listed = _listed(concepts, " or ")
    return tuple(
        (scene.asset_id, f"the prompt contains nothing of {listed}: {shown(scene.prompt)}")
        for scene in scenes
        if lacks_all(plain_text(scene.prompt, syntax), concepts)
    )


def must_contain(who: str, concepts: Sequence[str], conjunction: str) -> str:
    words = _listed(concepts[:_NAMED], conjunction)
    return (
        f'{who}\'s prompt must contain {words}, or some of its words: here, in "subject" or in "style"; '
        "on_missing_concept: skip renders the rest"
    )


def _listed(concepts: Sequence[str], conjunction: str) -> str:
    return conjunction.join(shown(concept) for concept in concepts)


def job_findings(job: Any) -> Iterator[Finding]:
    """Problems between subjects: equal ids, too many pictures."""
    config = text_field(job, "config")
    if config and not text_field(job, "model").lower().endswith(".safetensors"):
        yield Finding(("config",), config, "leave it out, only a model that is a single .safetensors file needs one")
    first: dict[str, int] = {}
    pictures = 0
    for index, subject in entries(job, "subjects"):
        name = text_field(subject, "id")
        if name and first.setdefault(name.lower(), index) != index:
            fix = f"choose another id, subjects[{first[name.lower()]}] has this one (capitals make no difference)"
            yield Finding(("subjects", index, "id"), name, fix)
        poses = max(1, sum(1 for _ in entries(subject, "poses")))
        pictures += poses * sum(_count(scene) for _, scene in entries(subject, "scenes"))
    if pictures > MAX_PICTURES // _takes(job):
        pictures *= _takes(job)
        fix = f"split the job, it may have {MAX_PICTURES} pictures at most"
        yield Finding(("subjects",), f"{pictures} pictures", fix)


def control_findings(job: Any) -> Iterator[Finding]:
    """Hints without a ControlNet, the first one of each kind; ControlNets and poses that cannot be told apart."""
    nets = [net for _, net in entries(job, "controlnets")]
    names = [net if isinstance(net, str) else text_field(net, "name") or text_field(net, "model") for net in nets]
    for index, name in enumerate(names):
        if name and name in names[:index]:
            yield Finding(
                ("controlnets", index),
                name,
                f"leave it out, or give it a name: controlnets[{names.index(name)}] is called so",
            )
    told = set()
    for loc, control in _controls(job):
        net = field(control, "net") or 0
        if not isinstance(net, int | str) or net in told or (net in names if isinstance(net, str) else net < len(nets)):
            continue
        told.add(net)
        if not nets:
            fix = "name the ControlNet that it is for at the top of the job, such as controlnets: [miniature]"
            yield Finding(loc, control, fix)
            return
        known = ", ".join(f"{index} ({shown(name)})" for index, name in enumerate(names))
        yield Finding((*loc, "net"), net, f"write the place or the name of one of the job's controlnets: {known}")


def _controls(job: Any) -> Iterator[tuple[Loc, Any]]:
    """Every hint of a job and where it stands."""
    for number, subject in entries(job, "subjects"):
        for name in ("anchors", "pictures", "scenes"):
            for index, entry in entries(subject, name):
                if (control := field(entry, "control")) is not None:
                    several = control if isinstance(control, (list, tuple)) else [control]
                    for place, one in enumerate(several):
                        yield ("subjects", number, name, index, "control", place), one
        for index, pose in entries(subject, "poses"):
            yield ("subjects", number, "poses", index), pose


def _pose_findings(subject: Any) -> Iterator[Finding]:
    """Poses whose names are equal, or that are the same picture."""
    names: dict[str, int] = {}
    contents: dict[str, int] = {}
    for index, pose in entries(subject, "poses"):
        name = text_field(pose, "name").lower()
        if name and names.setdefault(name, index) != index:
            fix = f"choose another name, poses[{names[name]}] has this one (capitals make no difference)"
            yield Finding(("poses", index, "name"), name, fix)
        content = _content(pose)
        if content and contents.setdefault(content, index) != index:
            fix = f"leave it out, poses[{contents[content]}] is the same picture"
            yield Finding(("poses", index, "image"), text_field(field(pose, "image"), "url"), fix)


def _content_of_words(entry: Any) -> str:
    """All that a picture is told besides its prompt, as text."""
    given = [field(entry, name) for name in ("prompt_2", "negative_prompt")]
    return "" if given == [None, None] else repr(given)


def _content(control: Any) -> str:
    """All that a hint does, as text: its picture by its content."""
    sha256 = text_field(field(control, "image"), "sha256")
    names = ("scale", "start", "end", "preprocess", "net", "mode")
    return f"{sha256} {[field(control, name) for name in names]}" if sha256 else ""


def _scene_id_findings(scenes: list[Entry]) -> Iterator[Finding]:
    """Explicit ids must differ, also from the ids ``x-0``, ``x-1``, … that a scene ``x`` with a count expands to."""
    single: dict[str, int] = {}
    counted: dict[str, tuple[int, int]] = {}
    mappings = [(index, scene) for index, scene in scenes if not isinstance(scene, (str, int))]
    named = [(index, name, _count(scene)) for index, scene in mappings if (name := text_field(scene, "id"))]
    for index, name, count in named:
        key = name.lower()
        other = single.get(key) if count == 1 else counted.get(key, (None, 0))[0]
        if other is not None:
            fix = f"choose another id, scenes[{other}] has this one (capitals make no difference)"
            yield Finding(("scenes", index, "id"), name, fix)
        elif _ANCHOR_ID.fullmatch(name if count == 1 else f"{name}-0"):
            yield Finding(("scenes", index, "id"), name, 'choose another id, "anchor-…" is kept for anchors')
        elif count == 1:
            single[key] = index
        else:
            counted[key] = (index, count)
    for index, name, count in named:
        match = _COUNTED.fullmatch(name.lower()) if count == 1 and counted else None
        owner = counted.get(match.group(1)) if match else None
        if match and owner and int(match.group(2)) < owner[1]:
            fix = f"choose another id, scenes[{owner[0]}] with its count makes a picture of this name"
            yield Finding(("scenes", index, "id"), name, fix)


def _seed_findings(scenes: list[Entry]) -> Iterator[Finding]:
    """Two scenes with the same words and one control need different seeds, or they would be the same picture twice."""
    ranges: dict[tuple[str, ...], list[tuple[int, int, int]]] = {}
    for index, scene in scenes:
        seed = field(scene, "seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            continue
        count = _count(scene)
        if seed <= MAX_SEED < seed + count - 1:
            fix = f"seeds count up from here and must stay below {MAX_SEED + 1}"
            yield Finding(("scenes", index, "seed"), seed, fix)
        control = field(scene, "control")
        led = (
            [_content(one) for one in control]
            if isinstance(control, (list, tuple))
            else [_content(control)]
            if control
            else []
        )
        words = [_content_of_words(scene)]
        ranges.setdefault((" ".join(_prompt(scene).split()), *words, *led), []).append((seed, seed + count - 1, index))
    for same in ranges.values():
        same.sort()
        last, owner = -1, -1
        for seed, end, index in same:
            if seed <= last:
                fix = f"choose another seed, scenes[{owner}] already is this picture (same prompt, same seed)"
                yield Finding(("scenes", index, "seed"), seed, fix)
            if end > last:
                last, owner = end, index


def _has(item: Any, name: str) -> bool:
    """Whether a key was written down, whatever its value."""
    return name in item if isinstance(item, Mapping) else bool(getattr(item, name, ()))


def _written_text(item: Any, name: str) -> str | None:
    """A text field, "" where it is absent, None where it cannot be used."""
    return "" if field(item, name) is None else text_field(item, name) or (None if field(item, name) != "" else "")


def _prompt(item: Any) -> str:
    """The prompt of an anchor or scene, which may be a bare string."""
    return (item if len(item) <= MAX_TEXT else "") if isinstance(item, str) else text_field(item, "prompt")


def _count(scene: Any) -> int:
    if isinstance(scene, (str, int)):
        return 1
    count = field(scene, "count")
    return count if isinstance(count, int) and count > 0 else 1


def _takes(job: Any) -> int:
    takes = field(job, "takes")
    return takes if isinstance(takes, int) and takes > 0 else 1


def _concepts(subject: Any) -> list[str]:
    value = field(subject, "concept")
    values = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return [concept for concept in values if isinstance(concept, str) and concept.strip() and len(concept) <= MAX_TEXT]
