"""The options that say which model a benchmark runs on what, and how pictures are rendered; what results tell of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.errors import InputError, Problem
from consistory_ray.evaluation.rendering import PictureStore, Renderer
from consistory_ray.settings import MethodSettings

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--dtype``."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="auto: float16 on a GPU, float32 on a CPU")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--device``, ``--dtype`` and ``--threads``."""
    parser.add_argument("--model", default="miniature", help="'miniature', a hub id, or a pipeline folder")
    add_device_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")


def add_rendering_options(parser: argparse.ArgumentParser) -> None:
    """``--batch-size``, ``--steps`` and ``--cache``, of benchmarks that look at pictures."""
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--cache", type=Path, help="folder to keep pictures in, for going on after an interruption")


def renderer_of(pipeline: ConsiStoryPipeline, settings: MethodSettings, options: argparse.Namespace) -> Renderer:
    """Pictures as :func:`add_rendering_options` wants them."""
    return Renderer(pipeline, settings, PictureStore(options.cache, pipeline.fingerprint), options.batch_size)


def changed(settings: MethodSettings, **changes: Any) -> MethodSettings:
    """Settings with what a command line gives; None changes nothing, a list is a tuple."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    return settings.replace(**{key: value for key, value in given.items() if value is not None})


def chosen_device(options: argparse.Namespace) -> torch.device:
    """The device that is meant.

    Raises:
        InputError: there is no such device here.
    """
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        fix = f"use auto, or a device that is here ({str(error).splitlines()[0]})"
        raise InputError("the device cannot be used", [Problem("--device", repr(name), fix)]) from error
    return device


def chosen_dtype(options: argparse.Namespace) -> torch.dtype:
    """The dtype that is meant, on the device that is."""
    name = options.dtype
    if name == "auto":
        name = "float16" if chosen_device(options).type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_pipeline(options: argparse.Namespace, **more: Any) -> ConsiStoryPipeline:
    """The model of :func:`add_model_options`, where and as it is wanted; ``more`` goes to ``from_pretrained``."""
    torch.set_num_threads(options.threads)
    return ConsiStoryPipeline.from_pretrained(
        options.model, torch_dtype=chosen_dtype(options), device=chosen_device(options), **more
    )


def described(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What results say about where they come from: ``device`` (a GPU by its name), ``dtype`` and ``torch``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__}


def described_pipeline(pipeline: ConsiStoryPipeline) -> dict[str, str]:
    """The same of a loaded model."""
    unet: Any = pipeline.pipe.unet
    return described(pipeline.device, unet.dtype)


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def synchronise(device: torch.device) -> None:
    """Wait for what was begun on a device; clocks are read after this."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
