"""What settings that are names may be."""

from __future__ import annotations

from typing import Literal

FirstPass = Literal["full", "lookahead", "live"]
CacheCodec = Literal["none", "int8", "fp8", "int4"]
Profile = Literal["exact", "fast", "turbo"]
Strength = Literal["paper", "strong"]
Scheduler = Literal["ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd", "model"]
SigmaSchedule = Literal["karras", "exponential"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]
PromptSyntax = Literal["plain", "compel"]
NamedMetric = Literal["judge", "judge-2", "colours", "clip", "dinov2", "dreamsim"]
Measure = Literal["identity", "alignment"]
Keep = Literal["best"]
WhenNonePasses = Literal["fail", "accept"]
