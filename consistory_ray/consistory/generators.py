"""``generator``: initial noise drawn from the caller's own generators, the same as diffusers' pipelines draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from consistory_ray.errors import Problem

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]
"""One for all pictures of a call, which are drawn one after the other, or one for each."""


def generator_problems(generator: Generators, count: int, device: torch.device) -> list[Problem]:
    """What is wrong with generators for so many pictures that are computed on a device."""
    several = isinstance(generator, (list, tuple))
    given: list[Any] = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    problems = []
    if several and len(given) != count:
        problems.append(Problem("generator", str(len(given)), f"give one, or one per prompt: {count}"))
    for index, one in enumerate(given):
        path = f"generator[{index}]" if several else "generator"
        if not isinstance(one, torch.Generator):
            problems.append(Problem(path, repr(one)[:100], "give a torch.Generator, or a whole number as one of seeds"))
        elif one.device.type not in ("cpu", device.type):
            fix = f"make it on the CPU or on {device.type}, where the model computes"
            problems.append(Problem(path, f"on {one.device}", fix))
    return problems


def generator_seeds(generator: Generators, count: int) -> tuple[int, ...]:
    """A seed for each picture's later noise and dropout, told by what its generator was seeded with.

    Pictures that share a generator get different ones, the first one that of the generator.
    """
    if not isinstance(generator, torch.Generator):
        return tuple(one.initial_seed() % 2**63 for one in generator)
    first = generator.initial_seed() % 2**63
    return first, *(_derived(first, number) for number in range(1, count))


def drawn_latents(generator: Generators, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Initial noise [images, channels, height, width] as diffusers draws it, as float32 on the CPU.

    Args:
        generator: moved on by what is drawn.
        shape: of the noise.
        device, dtype: in which diffusers' pipeline of the model would draw.
    """
    given = generator if isinstance(generator, torch.Generator) else list(generator)
    noise: Tensor = randn_tensor(shape, generator=given, device=device, dtype=dtype)
    return noise.cpu().float()


def _derived(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"generator/{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
