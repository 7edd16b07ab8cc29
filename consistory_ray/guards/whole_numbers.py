"""Whole numbers however a caller has them."""

from __future__ import annotations

import operator
from numbers import Integral, Real
from typing import Any


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
