"""Scenes of a stored subject with another profile than it was stored with, by the bundled model."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.engine.faults import Failure
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.workers.renderer import consistory_renderer
from consistory_ray.engine.workers.worker import RenderWorker, Report
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import SubjectPlan, make_plan
from consistory_ray.settings import SCENE_SETTINGS, MethodSettings

SPEC = RendererSpec("miniature", "cpu", "float32", 1)
loaded_once = functools.cache(consistory_renderer)
WORDS = {"id": "moss", "concept": "dragon", "style": "a drawing of", "subject": "a dragon"}
SIZE = {"num_inference_steps": 10, "height": 64, "width": 64}


def planned(subject: dict[str, Any], **settings: Any) -> SubjectPlan:
    return make_plan(parse_job({"settings": settings, "subjects": [subject]})).subjects[0]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subject that was stored for scenes that are exact."""
    output = tmp_path_factory.mktemp("exact")
    plan = planned({**WORDS, "anchors": ["in space"], "scenes": ["in the rain"]}, **SIZE)
    store(RenderWorker(loaded_once, SPEC, open_output(output)), plan, make=True)
    return output / "anchors" / "moss"


def store(worker: RenderWorker, plan: SubjectPlan, make: bool) -> Any:
    report, buffer = worker.anchors(plan, make)
    assert isinstance(report, Report) and buffer is not None, report
    assert worker.save(plan, buffer, report.cache_sha256) is None
    return buffer


def test_they_are_rendered_with_what_the_plan_says(exact: Path, tmp_path: Path) -> None:
    worker = RenderWorker(loaded_once, SPEC, open_output(tmp_path))
    pictures = {}
    for profile in ("exact", "fast"):
        plan = planned({"from": str(exact), "scenes": ["in the snow"]}, profile=profile)
        buffer = store(worker, plan, make=False)
        report = worker.scenes(plan, plan.scenes, buffer)
        assert isinstance(report, Report) and not report.failures, report
        data = (tmp_path / plan.scenes[0].path).read_bytes()
        pictures[profile] = np.asarray(Image.open(tmp_path / plan.scenes[0].path))
        told = read_metadata(data)
        assert told is not None and MethodSettings.from_dict(told["settings"]) == plan.settings
    assert not np.array_equal(pictures["exact"], pictures["fast"])
    pipeline = loaded_once(SPEC)._pipeline  # type: ignore[attr-defined]
    cache, scene = AnchorCache.from_buffer(buffer), plan.scenes[0]
    expected = pipeline.render([scene.prompt], cache, [scene.seed], profile="fast").images[0]
    assert np.array_equal(np.asarray(expected), pictures["fast"])


def test_the_copy_says_what_its_cache_was_made_for(exact: Path, tmp_path: Path) -> None:
    fast = planned({"from": str(exact), "scenes": ["in the snow"]}, profile="fast")
    store(RenderWorker(loaded_once, SPEC, open_output(tmp_path)), fast, make=False)
    copied = json.loads((tmp_path / "anchors" / "moss" / "subject.json").read_text())
    assert not set(SCENE_SETTINGS) & set(copied["settings"])
    assert planned({"from": str(tmp_path / "anchors" / "moss"), "scenes": ["in the snow"]}).settings.profile == "exact"


def test_a_cache_that_lacks_what_the_plan_reads_fails_in_words(exact: Path, tmp_path: Path) -> None:
    """subject.json was changed by hand: the cache itself has the last word."""
    record = json.loads((exact / "subject.json").read_text())
    forged = shutil.copytree(exact, tmp_path / "forged")
    live = MethodSettings.from_dict(record["settings"]).replace(first_pass="live")
    (forged / "subject.json").write_text(json.dumps({**record, "settings": live.to_dict()}))
    plan = planned({"from": str(forged), "scenes": ["in the snow"]})
    worker = RenderWorker(loaded_once, SPEC, open_output(tmp_path / "out"))
    failure = worker.scenes(plan, plan.scenes, store(worker, plan, make=False))
    assert isinstance(failure, Failure) and "lacks" in failure.message
