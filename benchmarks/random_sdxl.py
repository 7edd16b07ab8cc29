"""Sizes of random models that only tests and benchmarks use; the models are of the package's own builder."""

from __future__ import annotations

from consistory_ray.doctor.random_models import (
    QUICK,
    SDXL,
    Topology,
    build_pipeline,
    build_tokenizer,
    build_unet,
    random_model,
)

__all__ = [
    "DEEP",
    "QUICK",
    "SDXL",
    "TINY",
    "Topology",
    "build_pipeline",
    "build_tokenizer",
    "build_unet",
    "random_model",
]

DEEP = Topology((64, 128, 256), (1, 2, 4), 2, (1, 2, 10), (64, 64), 32, 32, 32)
"""All 70 transformer blocks of SDXL with its heads of 64 channels, a fifth as wide: 0.1 instead of 2.6 B parameters."""
TINY = Topology((8, 16, 32), (1, 2, 4), 1, (1, 1, 2), (16, 24), 8, 4, 16)
"""As small as the topology goes: the levels are 4x4 and 8x8 tokens."""
