"""What every committed result carries: which model, which versions, on what, when, and the command that makes it again.

``stamped(report, pipeline)`` adds it under ``stamp``; tests/benchmarks/test_results.py checks it of every file in
``results/``, and that the fingerprint is that of the committed weights.
"""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from consistory_ray.consistory import ConsiStoryPipeline

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "diffusers", "transformers", "consistory-ray")
KEYS = ("model_fingerprint", "versions", "device", "dtype", "date", "command", "commit")
PRIVATE_OPTIONS = ("--cache", "--out", "--output")
"""Options that say where files lie, and nothing of a result."""


def stamped(
    report: Mapping[str, Any],
    pipeline: ConsiStoryPipeline | None = None,
    *,
    fingerprint: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
) -> dict[str, Any]:
    """A report with its stamp.

    Args:
        report: of a benchmark, JSON-ready.
        pipeline: the model it ran, which says all of what follows.
        fingerprint: of the model, for benchmarks that hold no pipeline; None runs no model.
        device: what it ran on.
        dtype: in which it computed; None where nothing is computed in one.
    """
    if pipeline is not None:
        unet: Any = pipeline.pipe.unet
        fingerprint, device, dtype = pipeline.fingerprint, pipeline.device, unet.dtype
    stamp = {
        "model_fingerprint": fingerprint,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "device": _device_name(str(device)),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": command(sys.argv),
        "commit": commit(),
    }
    return {**report, "stamp": stamp}


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch  # only here: benchmarks of processes and memory run without it

    return torch.cuda.get_device_name(device)


def command(argv: Sequence[str]) -> str:
    """The command line as anybody would type it in the repository, without this machine's folders."""
    script = Path(argv[0])
    words = [script.resolve().relative_to(ROOT).as_posix() if script.resolve().is_relative_to(ROOT) else script.name]
    rest = iter(argv[1:])
    for word in rest:
        if word in PRIVATE_OPTIONS:
            next(rest, None)
        elif not word.startswith(tuple(f"{option}=" for option in PRIVATE_OPTIONS)):
            words.append(word)
    return shlex.join(["python", *words])


def commit() -> str | None:
    """The commit the code was at, with ``+changes`` where it had some; None outside a git repository."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.safetensors", "*.json")
    except (OSError, subprocess.CalledProcessError):
        return None
    ours = [line for line in changed.splitlines() if "benchmarks/results/" not in line]
    return f"{head}+changes" if ours else head


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
