"""Half precision on processors that have no instructions for it."""

from __future__ import annotations

import logging
from pathlib import Path

HALF_PRECISION = ("float16", "bfloat16")

_FAST_WITH = {"bfloat16": "amx_bf16", "float16": "amx_fp16"}
_log = logging.getLogger(__name__)


def half_on_cpu(dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What to say about computing in ``dtype`` on this machine's CPU; None if nothing is wrong with it."""
    if dtype not in HALF_PRECISION:
        return None
    try:
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        flags = []
    if _FAST_WITH[dtype] in flags:
        return None
    return f"a CPU without AMX computes up to nine times slower in {dtype} than in float32: leave torch_dtype out"


def warn_of_half_on_cpu(device: str, dtype: str) -> None:
    """Log it."""
    if device == "cpu" and (told := half_on_cpu(dtype)):
        _log.warning(told)
