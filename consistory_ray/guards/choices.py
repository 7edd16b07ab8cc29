"""What settings that are names may be."""

from __future__ import annotations

from typing import Literal

FirstPass = Literal["full", "lookahead", "live"]
CacheCodec = Literal["none", "int8", "fp8", "int4"]
Profile = Literal["exact", "fast", "turbo"]
