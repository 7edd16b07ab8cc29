"""Fixtures for tests that disturb whole runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.jobs.job import RenderJob
from tests.engine.renders import SCENES, Render, StartRender


@pytest.fixture
def start(make_job: Callable[..., RenderJob], tmp_path: Path) -> Iterator[StartRender]:
    """``start("--address", "local", seconds=0.3)``: a render of 2 subjects with 2 anchors and 10 scenes each."""
    job = tmp_path / "job.json"
    job.write_text(make_job(subjects=2, scenes=SCENES // 2).model_dump_json(exclude_unset=True))
    started: list[Render] = []

    def begin(*arguments: str, **fake: Any) -> Render:
        started.append(Render(job, tmp_path / "out", tmp_path, *arguments, **fake))
        return started[-1]

    yield begin
    for render in started:
        render.end()
