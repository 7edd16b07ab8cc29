"""Numbers that go wrong quietly: whole ones of other types, half precision on slow processors, pictures of overflow."""

from __future__ import annotations

import logging
import operator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

HALF_PRECISION = ("float16", "bfloat16")
NOT_FINITE = "the model produced numbers that are not finite; bfloat16 or float32 may help"

_FAST_WITH = {"bfloat16": "amx_bf16", "float16": "amx_fp16"}
_log = logging.getLogger(__name__)


def whole_number(value: Any) -> int | None:
    """A whole number as Python has it, also of numpy's types and 3.0; None for anything else, truth values included."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return int(number) if number.is_integer() else None
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


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


def picture_fault(picture: Any) -> str | None:
    """Why a picture must not be delivered, None if it may: the one rule of the pipeline and the workers.

    Networks that overflow give pictures of a single colour, mostly black, and nothing raises an error. What was really
    drawn is never quite of one colour: an autoencoder leaves differences of a few 1/255 in the plainest sky. So a
    picture is refused if *every* pixel has the same 8-bit colour; one pixel that differs by 1/255 is enough to keep it,
    and a picture of one pixel is kept.

    Args:
        picture: a PIL image, or an array [height, width, channels] of uint8, or of floats in 0..1.
    """
    import numpy as np

    pixels = np.asarray(picture)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            return NOT_FINITE
        pixels = (pixels * 255).round()
    colours = pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)
    if len(colours) < 2 or not (colours == colours[0]).all():
        return None
    colour = ", ".join(str(int(value)) for value in colours[0])
    return f"every pixel has the same colour ({colour}): the model overflowed; bfloat16 or float32 may help"
