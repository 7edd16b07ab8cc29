"""Half precision on a CPU is told by whoever loads a model there."""

from __future__ import annotations

import logging

import pytest
import torch

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.guards.numerics import half_on_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loading_onto_a_cpu_tells_it(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "consistory_ray"):
        ConsiStoryPipeline.from_pretrained(torch_dtype=dtype, device="cpu")
    told = half_on_cpu(str(dtype).removeprefix("torch."))
    assert [record.message for record in caplog.records if "nine times" in record.message] == ([told] if told else [])
