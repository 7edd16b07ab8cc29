"""What scenes read of a cache: whether it is there, and the same cache with nothing else, packed in another way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import AnchorCache, features_name
from consistory_ray.consistory.cache.codecs import CODECS
from consistory_ray.consistory.method.steps import Pass, StepPlan
from consistory_ray.errors import CacheMismatchError, Problem
from consistory_ray.settings import SCENE_SETTINGS, MethodSettings

_SHOWN = 4
_PACKED = ("shared", "injected")
_KINDS = {
    "shared": "the anchors' tokens",
    "injected": "injected outputs",
    "features": "features for live correspondences",
}


def check_cache(cache: AnchorCache, fingerprint: str, settings: MethodSettings | None) -> None:
    """Refuse a cache of another model, or of other settings where some are asked for.

    Those that only scenes have may differ, if the cache holds what scenes will read; how it is packed may differ too.

    Raises:
        CacheMismatchError: naming what differs, or what is missing.
    """
    problems: list[Problem] = []
    if cache.fingerprint != fingerprint:
        fix = f"make the subject again with this model, whose fingerprint is {fingerprint[:12]}"
        problems.append(Problem("model", cache.fingerprint[:12], fix))
    if settings is not None:
        wanted, found = settings.exact.to_dict(), cache.settings.exact.to_dict()
        for key in ("height", "width"):  # not asked for: the cache's
            wanted[key] = found[key] if wanted[key] is None else wanted[key]
        problems += [
            Problem(f"settings.{key}", repr(found[key]), f"make the subject again: {wanted[key]!r} is asked for")
            for key in wanted
            if wanted[key] != found[key]
        ]
    if problems:
        raise CacheMismatchError("the anchor cache was made with another model or other settings", problems)
    if settings is not None and (missing := _missing(cache, settings)):
        made, asked = cache.settings.profile, settings.profile
        lacks = f"the cache, made for {made or 'settings of its own'}, lacks {' and '.join(missing)}"
        render, again = f"profile: {made}" if made else "those", f"profile: {asked}" if asked else "these settings"
        fix = f"render with {render}, or make the subject again with {again}"
        problem = Problem("profile", asked or "these settings", f"{lacks}; {fix}")
        raise CacheMismatchError("the anchor cache lacks what these scenes read", [problem])


def packed_for(cache: AnchorCache, settings: MethodSettings) -> AnchorCache:
    """A cache as scenes of other settings read it: without what they do not read, and packed as they say.

    What is packed already is unpacked first where the codec is another one, and errors add up. Nothing of the cache is
    written to; tensors that are packed alike are the same ones.

    Args:
        cache: whose settings are the same, but for what is saved on scenes and for the codec.
        settings: of the scenes; height and width may be None.

    Raises:
        CacheMismatchError: the cache lacks what these scenes read, was made with other settings, or is of version 1.
    """
    check_cache(cache, cache.fingerprint, settings)
    if cache.version == 1:
        problem = Problem("format_version", "1", "make the subject again: such files do not say which tokens they hold")
        raise CacheMismatchError("the anchor cache cannot be packed", [problem])
    reads = _Reads.of(cache, StepPlan.from_settings(settings, cache.levels))
    old, new = CODECS[cache.codec], CODECS[settings.cache_codec]
    tensors: dict[str, Tensor] = {}
    for stem, (held, names) in _stems(cache).items():
        if held is not None and held not in reads.steps:
            continue
        if held is None or held.kind not in _PACKED or old.name == new.name:
            tensors |= {name: cache.tensors[name] for name in names}
        else:
            tensors |= new.pack(stem, old.unpack(stem, cache.tensors))
    changes = {name: getattr(settings, name) for name in (*SCENE_SETTINGS, "cache_codec")}
    return replace(cache, settings=cache.settings.replace(**changes), tensors=tensors, codec=new.name)


@dataclass(frozen=True, slots=True)
class _Held:
    """A kind of a step's tensors: ``shared``, ``positions``, ``injected`` or ``features``."""

    kind: str
    at: Pass


@dataclass(frozen=True, slots=True)
class _Reads:
    """What scenes of a plan read of a cache: the steps that it holds, and the kinds that it should hold."""

    steps: frozenset[_Held]
    missing: tuple[_Held, ...]

    @classmethod
    def of(cls, cache: AnchorCache, plan: StepPlan) -> _Reads:
        there = {held for held, _ in _stems(cache).values()}
        wanted = [_Held("shared", at) for at in sorted(plan.reads)]
        wanted += [_Held("injected", Pass(2, step)) for step in plan.injections]
        wanted += [_Held("features", at) for at in plan.live_features]
        steps, missing = set(), []
        for held in wanted:  # what both passes have in common lies with pass 1
            place = held if held in there else _Held(held.kind, Pass(1, held.at.step))
            if place in there:
                steps.add(place)
            else:
                missing.append(held)
        steps |= {_Held("positions", held.at) for held in steps if held.kind == "shared"}
        return cls(frozenset(steps), tuple(missing))


def _missing(cache: AnchorCache, settings: MethodSettings) -> list[str]:
    """What scenes would read and the cache lacks, in words."""
    plan = StepPlan.from_settings(settings, cache.levels)
    missing = _Reads.of(cache, plan).missing
    found = {kind: [held.at for held in missing if held.kind == kind] for kind in _KINDS}
    words = [f"{_KINDS[kind]} of {_steps(lacking)}" for kind, lacking in found.items() if lacking]
    if plan.injected and features_name(cache.feature_level) not in cache.tensors:
        words.append("the features of the anchors")
    return words


def _steps(places: Iterable[Pass]) -> str:
    names = [f"step {at.step} of pass {at.number}" for at in places]
    more = f" and {len(names) - _SHOWN} more steps" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _stems(cache: AnchorCache) -> dict[str, tuple[_Held | None, list[str]]]:
    """Names of tensors before they were packed, in order: what of a step they are, and the names that they have now."""
    levels = "|".join(re.escape(level) for level in sorted(cache.grids, key=len, reverse=True))
    pattern = re.compile(rf"(pass(\d+)\.step(\d+)\.(\w+)\.(?:{levels}))(?:\.|$)")
    found: dict[str, tuple[_Held | None, list[str]]] = {}
    for name in cache.tensors:
        match = pattern.match(name)
        held = _Held(match[4], Pass(int(match[2]), int(match[3]))) if match else None
        found.setdefault(match[1] if match else name, (held, []))[1].append(name)
    return found
