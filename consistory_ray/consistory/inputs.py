"""What a caller asks for, checked and completed: settings with their picture size, and batches of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consistory_ray.consistory.argument_names import unknown_name
from consistory_ray.consistory.generators import Generators, drawn_latents, generator_problems, generator_seeds
from consistory_ray.consistory.method.backbone import Backbone, Controllable, Weighing
from consistory_ray.consistory.method.latents import seeded_noise
from consistory_ray.consistory.method.request import Batch, Request
from consistory_ray.consistory.method.steps import StepPlan, check_settings
from consistory_ray.consistory.words import Texts, check_words, second_prompts, unlike_settings
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.numerics import whole_number
from consistory_ray.settings import PROFILES, SCENE_SETTINGS, STRENGTHS, MethodSettings

_SETTINGS = tuple(field.name for field in dataclasses.fields(MethodSettings))


def changed_settings(settings: MethodSettings, changes: Mapping[str, Any]) -> MethodSettings:
    """Settings with some changed by name; ``strength`` and ``profile`` are many at once, beneath single ones.

    Raises:
        InputError: naming every name that is none of a setting, and a strength or profile that does not exist.
    """
    problems = []
    changes = dict(changes)
    for name, sets in {"strength": STRENGTHS, "profile": PROFILES}.items():
        chosen = changes.pop(name, None)
        if isinstance(chosen, str) and chosen in sets:
            settings = settings.replace(**sets[chosen])
        elif chosen is not None:
            problems.append(Problem(name, repr(chosen)[:100], f"use one of {', '.join(sets)}"))
    for name in changes.keys() - set(_SETTINGS):
        problems.append(unknown_name(name, changes[name], _SETTINGS))
    if problems:
        raise InputError("there are no such settings", sorted(problems, key=lambda problem: problem.path))
    return settings.replace(**changes)


def scene_settings(made: MethodSettings, asked: MethodSettings | None, changes: Mapping[str, Any]) -> MethodSettings:
    """What scenes are rendered with: their subject's settings, in which only what is saved on scenes may be changed.

    Args:
        made: of the subject.
        asked: whose such settings are taken, or None.
        changes: ``profile``, or single such settings by name.

    Raises:
        InputError: other settings, and values that cannot be used.
    """
    if others := sorted((changes.keys() & {*_SETTINGS, "strength"}) - set(SCENE_SETTINGS)):
        fix = "make the subject with it: scenes have their subject's"
        problems = [Problem(name, repr(changes[name])[:100], fix) for name in others]
        raise InputError("these settings are the subject's", problems)
    if asked is not None:
        made = made.replace(**{name: getattr(asked, name) for name in SCENE_SETTINGS})
    changed = changed_settings(made, changes).replace(cache_codec=made.cache_codec)
    check_settings(changed)
    return changed


def resolve_settings(backbone: Backbone, settings: MethodSettings, latents: Tensor | None) -> MethodSettings:
    """Settings with the picture size filled in: that of the latents where given, else the model's own.

    Raises:
        InputError: naming every field that cannot be used.
    """
    check_settings(settings)
    check_words(settings)
    scale, native = backbone.pixels_per_latent, backbone.native_size
    if latents is not None:
        native = int(latents.shape[-2]), int(latents.shape[-1])
    height, width = settings.height or native[0] * scale, settings.width or native[1] * scale
    problems = [
        Problem(name, str(value), f"must be a positive multiple of {scale}, the model's pixels per latent")
        for name, value in (("height", height), ("width", width))
        if value < 1 or value % scale
    ]
    if settings.num_inference_steps > backbone.max_steps:
        fix = f"must be at most {backbone.max_steps}, the timesteps the model was trained with"
        problems.append(Problem("num_inference_steps", str(settings.num_inference_steps), fix))
    if settings.timesteps is not None and settings.timesteps[0] >= backbone.max_steps:
        fix = f"must be below {backbone.max_steps}, the timesteps the model was trained with"
        problems.append(Problem("timesteps[0]", str(settings.timesteps[0]), fix))
    if problems:
        raise InputError("the settings cannot be used with this model", problems)
    backbone.schedule(settings)
    return settings.replace(height=height, width=width)


def make_batch(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Any,
    latents: Tensor | None,
    concepts: tuple[str, ...] | None,
    settings: MethodSettings,
    *,
    generator: Generators | None = None,
    every: bool = False,
    exact_suffices: bool = False,
    prompts_2: Texts | None = None,
    negative_prompts: Texts | None = None,
) -> Batch:
    """Check a caller's prompts, seeds and latents, find the concepts and draw the noise.

    Args:
        generator: in the place of seeds and latents, see :mod:`~consistory_ray.consistory.generators`.
        prompts_2: what the second text encoder reads instead of the prompts: one text for all or one per image, None
            where it reads the prompt.
        negative_prompts: the same of the unconditional half, None where it is the settings' one.
        every, exact_suffices: how concepts are found, see :func:`~consistory_ray.concepts.matching.find_concepts`.

    Raises:
        InputError: they do not fit each other; :class:`PromptError` for concepts not in a prompt.
    """
    shape = backbone.latent_shape(settings.height or 0, settings.width or 0)
    whole = whole_seeds(seeds)
    _check_lengths(prompts, whole, latents, shape, generator, backbone.device)
    seconds = second_prompts(prompts, prompts_2)
    against = unlike_settings(negative_prompts, len(prompts), settings)
    find = backbone.concept_positions
    lengths: tuple[int, ...] = ()
    if settings.prompt_syntax != "plain":
        weighs = _weighing(backbone, settings)
        find = weighs.weighted_positions
        lengths = tuple(weighs.text_lengths(prompts, settings, prompts_2=seconds, negatives=against))
    positions = [] if concepts is None else find(prompts, concepts, every=every, exact_suffices=exact_suffices)
    columns = concept_columns(positions, max(lengths, default=backbone.text_tokens)) if positions else None
    if generator is not None:
        numbers = generator_seeds(generator, len(prompts))
        noise = drawn_latents(generator, (len(prompts), *shape), backbone.device, backbone.dtype)
    else:
        numbers = tuple(range(len(prompts))) if whole is None else whole
        noise = initial_latents(numbers, shape) if latents is None else latents
    batch = Batch(tuple(prompts), numbers, noise, columns, positions)
    return dataclasses.replace(batch, prompts_2=seconds, negatives=against, lengths=lengths)


def _weighing(backbone: Backbone, settings: MethodSettings) -> Weighing:
    if isinstance(backbone, Weighing):
        return backbone
    problem = Problem("prompt_syntax", repr(settings.prompt_syntax), "use plain: this model reads no other prompts")
    raise InputError("the settings cannot be used with this model", [problem])


def make_request(backbone: Backbone, batch: Batch, settings: MethodSettings, *, anchors: bool = False) -> Request:
    """Encode a batch's prompts; with resolved settings, while the model is in use. Nothing is saved on anchors."""
    levels, grids = backbone.schedule(settings).levels, backbone.grids(*batch.latents.shape[-2:])
    plan = StepPlan.from_settings(settings, levels)
    exact, scenes = (StepPlan.from_settings(settings.exact, levels), plan) if anchors else (plan, None)
    hints = batch.hints if any(batch.hints) else ()
    additions = None
    if hints and isinstance(backbone, Controllable):
        additions = backbone.additions(hints, settings, fixed=batch.fixed)
    conditioning = backbone.encode(batch.prompts, settings, prompts_2=batch.prompts_2, negatives=batch.negatives)
    return Request(batch, settings, exact, backbone.levels, grids, conditioning, additions, scenes)


def initial_latents(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Noise that depends on the seed alone: [images, channels, height, width] float32, drawn on the CPU."""
    return torch.stack([seeded_noise(seed, shape) for seed in seeds])


def concept_columns(positions: Sequence[Sequence[Sequence[int]]], text_tokens: int) -> Tensor:
    """Weights that average attention over each concept's tokens: [prompts, text tokens, concepts] float32."""
    columns = torch.zeros(len(positions), text_tokens, len(positions[0]))
    for prompt, concepts in enumerate(positions):
        for concept, tokens in enumerate(concepts):
            for token in tokens:
                columns[prompt, token, concept] = 1 / len(tokens)
    return columns


def whole_seeds(seeds: Any) -> tuple[int, ...] | None:
    """Seeds as Python's own whole numbers: those of numpy and torch are taken, and 3.0 for 3.

    Raises:
        InputError: naming every one that is no whole number.
    """
    if seeds is None:
        return None
    try:
        given = list(seeds)
    except TypeError:
        problem = Problem("seeds", repr(seeds)[:100], "give a list of whole numbers, one per prompt")
        raise InputError("the seeds cannot be used", [problem]) from None
    whole, problems = [], []
    for index, seed in enumerate(given):
        number = whole_number(seed)
        if number is None:
            problems.append(Problem(f"seeds[{index}]", repr(seed)[:100], "must be a whole number from 0 to 2**63 - 1"))
        else:
            whole.append(number)
    if problems:
        raise InputError("the seeds cannot be used", problems)
    return tuple(whole)


def _check_lengths(
    prompts: Sequence[str],
    seeds: Sequence[int] | None,
    latents: Tensor | None,
    shape: tuple[int, int, int],
    generator: Any,
    device: torch.device,
) -> None:
    problems = []
    if isinstance(prompts, str) or not prompts:
        problems.append(Problem("prompts", repr(prompts), "give a list with at least one text"))
    count = len(prompts)
    if generator is not None:
        both = [name for name, given in (("seeds", seeds), ("latents", latents)) if given is not None]
        problems += [Problem(name, "given", "leave them out, generator is given too") for name in both]
        problems += generator_problems(generator, count, device)
    elif seeds is None and latents is None:
        problems.append(Problem("seeds", "None", f"give {count} seeds, a generator, or latents"))
    if seeds is not None and len(seeds) != count:
        problems.append(Problem("seeds", str(len(seeds)), f"give one per prompt: {count}"))
    for index, seed in enumerate(seeds or ()):
        if not 0 <= seed < 2**63:
            problems.append(Problem(f"seeds[{index}]", str(seed), "must be from 0 to 2**63 - 1"))
    if latents is not None and tuple(latents.shape) != (count, *shape):
        problems.append(Problem("latents", str(tuple(latents.shape)), f"must have the shape {(count, *shape)}"))
    if problems:
        raise InputError("the arguments do not fit each other", problems)
