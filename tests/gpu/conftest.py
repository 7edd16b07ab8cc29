"""Devices that the tests here run on: the CPU always, so that no test dies of a slip on its first GPU, and CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.device_checks import exact_arithmetic

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a test runs. Tiny tensors are faster on one thread."""
    threads = torch.get_num_threads()
    if request.param == "cpu":
        torch.set_num_threads(1)
    yield torch.device(request.param)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No test here compares TF32 with float32."""
    with exact_arithmetic():
        yield
