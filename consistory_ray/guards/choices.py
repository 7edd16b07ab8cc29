"""Settings with a few named values, wherever they come from."""

from __future__ import annotations

from typing import Literal

FirstPass = Literal["full", "lookahead", "live"]
CacheCodec = Literal["none", "int8", "fp8", "int4"]
Profile = Literal["exact", "fast", "turbo"]
