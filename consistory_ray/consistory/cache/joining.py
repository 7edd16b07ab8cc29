"""Subjects of different runs in one cache: their scenes can show all of them, or any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.method.layout import Level
from consistory_ray.errors import CacheMismatchError, Problem
from consistory_ray.settings import MethodSettings


def joined(caches: Sequence[AnchorCache]) -> AnchorCache:
    """One cache with the anchors of several, in their order.

    A scene that is rendered from it attends to all anchors' tokens, and each of its own tokens finds its source among
    those of all (sections 3.2 and 3.4). Nothing tells the subjects apart but what they look like and are called.

    Args:
        caches: of one model and of equal settings, packed alike, on the CPU; of subjects that are called differently.

    Raises:
        CacheMismatchError: naming everything in which they differ.
    """
    first, *others = caches
    if not others:
        return first
    problems = [problem for number, other in enumerate(others, 1) for problem in _differences(first, other, number)]
    if problems:
        raise CacheMismatchError("the anchor caches do not fit together", problems)
    places: dict[str, Level] = {f".positions.{level}": level for level in first.grids}
    tensors: dict[str, Tensor] = {}
    for name in first.tensors:
        parts = [cache.tensors[name] for cache in caches]
        level = next((level for ending, level in places.items() if name.endswith(ending)), None)
        if level is not None:
            parts = _shifted(parts, caches, level)
        tensors[name] = torch.cat(parts, dim=_token_dimension(name, parts[0]))
    return dataclasses.replace(
        first,
        concepts=tuple(dict.fromkeys(concept for cache in caches for concept in cache.concepts)),
        prompts=tuple(prompt for cache in caches for prompt in cache.prompts),
        seeds=_all_seeds(caches),
        tensors=tensors,
    )


def _token_dimension(name: str, part: Tensor) -> int:
    """Tokens are the last but one of [layers, halves, tokens, channels] and the like, packed or not; masks and
    positions have one anchor after the other."""
    return 0 if part.dim() == 1 or name.startswith("mask.") else part.dim() - 2


def _shifted(parts: list[Tensor], caches: Sequence[AnchorCache], level: Level) -> list[Tensor]:
    """Positions, anchor * tokens + token, with the anchors counted through."""
    rows, columns = caches[0].grids[level]
    found, before = [], 0
    for part, cache in zip(parts, caches, strict=True):
        found.append(part + before * rows * columns)
        before += cache.anchors
    return found


def _all_seeds(caches: Sequence[AnchorCache]) -> tuple[int, ...] | None:
    seeds = [cache.seeds for cache in caches]
    return None if None in seeds else tuple(seed for each in seeds if each is not None for seed in each)


def _differences(first: AnchorCache, other: AnchorCache, number: int) -> list[Problem]:
    """What keeps a cache from being joined to the first one."""
    again = "make one of the subjects again with the other's"
    names = (field.name for field in dataclasses.fields(MethodSettings) if field.name != "cache_codec")
    pairs = {f"settings.{name}": (getattr(first.settings, name), getattr(other.settings, name)) for name in names}
    pairs |= {"model": (first.fingerprint[:12], other.fingerprint[:12]), "dtype": (first.dtype, other.dtype)}
    pairs |= {"grids": (dict(first.grids), dict(other.grids)), "version": (first.version, other.version)}
    pairs |= {"codec": (first.codec, other.codec), "levels": (first.levels, other.levels)}
    problems = [
        Problem(f"caches[{number}].{name}", repr(theirs), f"{again}: caches[0] has {mine!r}")
        for name, (mine, theirs) in pairs.items()
        if mine != theirs
    ]
    if not problems and (first.tensors.keys() != other.tensors.keys() or first.feature_level != other.feature_level):
        problems.append(Problem(f"caches[{number}]", "other tensors", f"{again} version"))
    return problems + [
        Problem(f"caches[{number}].concepts", repr(concept), "make it again under a name of its own, like 'red cat'")
        for concept in other.concepts
        if concept.lower() in {mine.lower() for mine in first.concepts}
    ]
