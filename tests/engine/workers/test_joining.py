"""Two subjects that workers have stored, with the bundled model, in the scenes of a third job."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consistory_ray.engine.faults import Failure
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.workers.renderer import consistory_renderer
from consistory_ray.engine.workers.worker import RenderWorker, Report
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import SubjectPlan, make_plan

SPEC = RendererSpec("miniature", "cpu", "float32", 1)
loaded_once = functools.cache(consistory_renderer)
SETTINGS = {"num_inference_steps": 4, "height": 64, "width": 64}


def planned(subject: dict[str, Any], **settings: Any) -> SubjectPlan:
    return make_plan(parse_job({"settings": settings, "subjects": [subject]})).subjects[0]


def stored(folder: Path, kind: str, **changes: Any) -> str:
    """Make a subject and save it; where it is then."""
    words = {"concept": kind, "style": "a drawing of", "subject": f"a {kind}", "id": kind}
    plan = planned({**words, "anchors": ["in space", "at sunset"], "scenes": ["in the rain"]}, **SETTINGS | changes)
    worker = RenderWorker(loaded_once, SPEC, open_output(folder))
    report, buffer = worker.anchors(plan, True)
    assert isinstance(report, Report) and buffer is not None, report
    assert worker.save(plan, buffer, report.cache_sha256) is None
    return str(folder / "anchors" / kind)


def test_they_are_rendered_together(tmp_path: Path) -> None:
    cat, robot = stored(tmp_path / "a", "cat"), stored(tmp_path / "b", "robot")
    plan = planned({"from": [cat, robot], "scenes": ["in the desert", "in the snow"]})
    worker = RenderWorker(loaded_once, SPEC, open_output(tmp_path / "both"))
    report, buffer = worker.anchors(plan, False)
    assert isinstance(report, Report) and buffer is not None, report
    assert report.import_cache and not report.made and not report.delivered
    again, same = RenderWorker(loaded_once, SPEC, open_output(tmp_path / "other")).anchors(plan, False)
    assert isinstance(again, Report) and again.cache_sha256 == report.cache_sha256
    assert same is not None and np.array_equal(same, buffer)
    expected = sum(source.nbytes for source in plan.sources)
    assert 0.9 * expected < report.cache_bytes <= expected
    done = worker.scenes(plan, plan.scenes, buffer, report.cache_sha256)
    assert isinstance(done, Report) and len(done.delivered) == 2
    pictures = [np.asarray(Image.open(tmp_path / "both" / scene.path), dtype=float) for scene in plan.scenes]
    alone = planned({"from": cat, "subject": "a cat and a robot", "scenes": ["in the desert", "in the snow"]})
    _, own = worker.anchors(alone, False)
    assert own is not None
    worker.scenes(dataclasses.replace(alone, scenes=plan.scenes), plan.scenes, own)
    others = [np.asarray(Image.open(tmp_path / "both" / scene.path), dtype=float) for scene in plan.scenes]
    assert all(np.abs(one - other).mean() > 1 for one, other in zip(pictures, others, strict=True)), "the robot counts"


def test_what_only_the_caches_say_is_told_of_them(tmp_path: Path) -> None:
    """subject.json gives no size where the job gave none: the caches know it."""
    cat, robot = stored(tmp_path / "a", "cat"), stored(tmp_path / "b", "robot", height=None, width=None)
    plan = planned({"from": [cat, robot], "scenes": ["in the desert"]})
    failure, buffer = RenderWorker(loaded_once, SPEC, open_output(tmp_path / "both")).anchors(plan, False)
    assert isinstance(failure, Failure) and buffer is None
    assert "do not fit together" in failure.message and "settings.height" in failure.message
    assert cat in failure.message and robot in failure.message
