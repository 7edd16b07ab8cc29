"""The real renderer on the bundled model, with few steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.cache.residence import PlacedCache
from consistory_ray.consistory.models import identity
from consistory_ray.consistory.models.fingerprint import model_fingerprint
from consistory_ray.engine.inputs import copy_inputs
from consistory_ray.engine.rendering import MadeSubject, RendererSpec
from consistory_ray.engine.workers import renderer as renderer_module
from consistory_ray.engine.workers.anchor_store import cache_digest
from consistory_ray.engine.workers.renderer import FREE_SHARE, ConsiStoryRenderer, own_memory
from consistory_ray.engine.workers.residents import ResidentCaches
from consistory_ray.errors import AssetError, CacheMismatchError
from consistory_ray.jobs.job import load_job, parse_job
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Asset, SubjectPlan, make_plan
from tests.consistory.late_copies import LateCopies

LED = {"control": {"image": "hint.png", "scale": 0.9}}


@pytest.fixture(scope="module")
def renderer() -> ConsiStoryRenderer:
    return ConsiStoryRenderer(RendererSpec("miniature", "cpu", "auto", 1))


def test_a_subject_is_made_and_rendered_and_its_time_is_split(renderer: ConsiStoryRenderer) -> None:
    subject = {
        "id": "dragon",
        "concept": "dragon",
        "subject": "a drawing of a dragon",
        "anchors": ["in the forest"],
        "scenes": ["in space", "in the snow", "at sunset"],
    }
    plan = make_plan(parse_job({"settings": {"num_inference_steps": 4}, "subjects": [subject]})).subjects[0]
    made = renderer.make_subject(plan)
    assert len(made.images) == 1 and made.cache_buffer.dtype == np.uint8
    assert {"pass1", "decode"} <= set(renderer.phases) and all(seconds > 0 for seconds in renderer.phases.values())
    assert [mask.dtype for mask in renderer.masks if mask is not None] == [np.bool_]
    assert made.sha256 == cache_digest(made.cache_buffer), "hashed while it was packed, and not again"
    cache = renderer.load_cache(made.cache_buffer)
    together = renderer.render(plan.scenes, cache)
    assert "pass1" in renderer.phases
    seen = list(renderer.masks)
    assert len(seen) == 3 and all(mask is not None and mask.any() and not mask.all() for mask in seen)
    alone = renderer.render(plan.scenes[1:2], cache)
    (mask,) = renderer.masks
    assert mask is not None and seen[1] is not None and (mask != seen[1]).mean() < 0.02
    difference = np.abs(np.asarray(together[1], float) - np.asarray(alone[0], float))
    assert difference.max() <= 2, f"a picture depends on its neighbours: {difference.max()}, {difference.mean()}"
    assert renderer.peak_memory is None and renderer.fitting_batch(None, None) is None

    damaged = made.cache_buffer.copy()
    damaged[:8] = 255
    with pytest.raises(CacheMismatchError):
        renderer.load_cache(damaged)


def test_other_words_of_single_pictures_reach_the_model(renderer: ConsiStoryRenderer) -> None:
    words: list[dict[str, str]] = [{}, {"negative_prompt": "a drawing at night"}, {"prompt_2": "in the desert"}]
    scenes = [{"prompt": "in space", "id": f"s{number}", "seed": 3, **own} for number, own in enumerate(words)]
    anchors = [{"prompt": "in the forest", "seed": 1}]
    subject = {"id": "x", "concept": "dragon", "subject": "a drawing of a dragon", "anchors": anchors, "scenes": scenes}
    settings = {"num_inference_steps": 4, "height": 64, "width": 64}
    plan = make_plan(parse_job({"settings": settings, "subjects": [subject]})).subjects[0]
    made = renderer.make_subject(plan)
    first, *others = (
        np.asarray(one, float) for one in renderer.render(plan.scenes, renderer.load_cache(made.cache_buffer))
    )
    assert all(np.abs(other - first).mean() > 1 for other in others)

    subject["anchors"] = [{**anchors[0], "negative_prompt": "a drawing at night"}]
    other = make_plan(parse_job({"settings": settings, "subjects": [subject]})).subjects[0]
    assert np.abs(np.asarray(renderer.make_subject(other).images[0], float) - np.asarray(made.images[0])).mean() > 1


def test_hints_lead_the_pictures_that_have_them_and_no_others(tmp_path: Path, renderer: ConsiStoryRenderer) -> None:
    hint = Image.new("L", (64, 64))
    hint.paste(255, (32, 24, 60, 60))
    hint.save(tmp_path / "hint.png")
    subject = {"id": "dragon", "concept": "dragon", "subject": "a drawing of a dragon", "anchors": ["in the forest"]}
    subject["scenes"] = ["in space", *({"prompt": "in the snow", "seed": 3, **led} for led in ({}, LED))]
    job = {"settings": {"num_inference_steps": 4}, "controlnets": ["miniature"], "subjects": [subject]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    whole = make_plan(load_job(str(tmp_path / "job.json")))
    copy_inputs(open_output(tmp_path / "out"), whole.inputs())
    (plan,) = whole.subjects
    spec = RendererSpec("miniature", "cpu", "auto", 1, controlnets=whole.controlnets, inputs=str(tmp_path / "out"))
    leading = ConsiStoryRenderer(spec)
    assert leading.fingerprint == renderer.fingerprint, "caches are the same with and without"
    assert len(leading.control_fingerprints) == 1 and renderer.control_fingerprints == ()
    cache = leading.load_cache(renderer.make_subject(plan).cache_buffer)
    _, free, led = (np.asarray(image, float) for image in leading.render(plan.scenes, cache))
    without = np.asarray(renderer.render(plan.scenes[1:2], cache)[0], float)
    assert np.abs(free - without).max() <= 2, "a picture depends on its neighbours' hints"
    assert np.abs(free - led).mean() > 5
    (tmp_path / "out" / next(whole.inputs()).path).write_bytes(b"damaged")
    with pytest.raises(AssetError, match="damaged"):
        ConsiStoryRenderer(spec).render(plan.scenes, cache)


def test_a_cache_is_put_together_once_and_only_when_somebody_asks() -> None:
    asked: list[str] = []

    def pack() -> tuple[np.ndarray, str]:
        asked.append("now")
        return np.arange(4, dtype=np.uint8), "digest"

    made = MadeSubject([], None, 1.0, pack=pack)
    assert not asked
    assert made.cache_buffer.nbytes == 4 and made.sha256 == "digest" and made.cache_buffer[1] == 1
    assert asked == ["now"]
    assert MadeSubject([], np.zeros(3, np.uint8), 1.0).sha256 == ""


def test_workers_on_one_gpu_plan_with_their_share_of_it() -> None:
    total, model = 80, 8
    assert own_memory(total - model, total, model, 1.0) == 72
    first = own_memory(total - model, total, model, 0.5)  # before the other one has loaded its model
    second = own_memory(total - 2 * model, total, model, 0.5)
    assert first == second == 32
    assert own_memory(10, total, model, 0.5) == 10, "never more than is free"
    assert own_memory(30, total, 45, 0.5) == 0


DRAGON = {"id": "dragon", "concept": "dragon", "subject": "a drawing of a dragon", "anchors": ["in the forest"]}


def dragon(settings: dict[str, Any], scenes: Sequence[str] = ("in space", "in the snow")) -> SubjectPlan:
    job = {"settings": settings, "subjects": [{**DRAGON, "scenes": list(scenes)}]}
    return make_plan(parse_job(job)).subjects[0]


@pytest.fixture(scope="module")
def made(renderer: ConsiStoryRenderer) -> tuple[SubjectPlan, AnchorCache]:
    plan = dragon({"num_inference_steps": 3})
    return plan, AnchorCache.from_buffer(renderer.make_subject(plan).cache_buffer)


class Memory:
    """A device with so much memory beside the model, of which the renderer's caches take some."""

    def __init__(self, renderer: ConsiStoryRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scene = renderer._scene_bytes(None, None)
        self.residents = ResidentCaches()
        self.size = 0.0
        monkeypatch.setattr(renderer, "_residents", self.residents)
        monkeypatch.setattr(renderer_module, "available_memory", lambda *_: int(self.size) - self.residents.nbytes)


def test_a_cache_stays_on_the_device_as_far_as_batches_leave_room(
    renderer: ConsiStoryRenderer, made: tuple[SubjectPlan, AnchorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan, cache), memory = made, Memory(renderer, monkeypatch)
    first, second = (PlacedCache(cache, torch.device("cpu"), copies=LateCopies()) for _ in range(2))
    expected = np.asarray(renderer.render(plan.scenes[:1], PlacedCache(cache, torch.device("cpu")))[0])

    memory.size = (memory.scene + 2.5 * cache.nbytes) / FREE_SHARE
    assert np.array_equal(np.asarray(renderer.render(plan.scenes[:1], first)[0]), expected)
    whole = first.resident_bytes
    renderer.render(plan.scenes[:1], second)
    assert first.resident_bytes == second.resident_bytes == whole > 0.8 * cache.nbytes, "there is room for both"

    fits = int(memory.size * FREE_SHARE / memory.scene)
    assert renderer.fitting_batch(None, None) == fits, "caches yield to batches, so that nothing is lost to them"
    memory.size = (memory.scene + 1.2 * cache.nbytes) / FREE_SHARE
    renderer.render(plan.scenes[:1], first)
    assert first.resident_bytes == whole and second.resident_bytes < 0.2 * cache.nbytes
    renderer.render(plan.scenes[:2], first)
    assert first.resident_bytes == 0, "a larger batch needs its memory"

    memory.size = (memory.scene + 1.2 * cache.nbytes) / FREE_SHARE
    renderer.render(plan.scenes[:1], first)
    held = memory.residents.nbytes
    del first
    assert held == whole and memory.residents.nbytes == 0, "a cache that the worker has forgotten is not there either"


def test_a_batch_that_does_not_fit_beside_its_cache_is_rendered_without(
    renderer: ConsiStoryRenderer, made: tuple[SubjectPlan, AnchorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan, cache), memory, render = made, Memory(renderer, monkeypatch), renderer._render
    placed = PlacedCache(cache, torch.device("cpu"), copies=LateCopies())
    memory.size = (2 * memory.scene + 2 * cache.nbytes) / FREE_SHARE
    (expected,) = renderer.render(plan.scenes[:1], placed)
    assert placed.resident_bytes

    def tight(scenes: Sequence[Asset], cache: PlacedCache, settings: Any) -> Sequence[Any]:
        if cache.resident_bytes or len(scenes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return render(scenes, cache, settings)

    monkeypatch.setattr(renderer, "_render", tight)
    (found,) = renderer.render(plan.scenes[:1], placed)
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    monkeypatch.setattr(renderer, "_render", render)
    renderer.render(plan.scenes[:1], placed)
    assert placed.resident_bytes == 0, "it is not tried again"
    monkeypatch.setattr(renderer, "_render", tight)
    with pytest.raises(torch.OutOfMemoryError):  # the scheduler makes the batch smaller
        renderer.render(plan.scenes[:2], placed)


def test_a_worker_computes_its_models_fingerprint_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []

    def counted(pipe: Any) -> str:
        computed.append(pipe)
        return model_fingerprint(pipe)

    monkeypatch.setattr(identity, "model_fingerprint", counted)
    renderer, plan = ConsiStoryRenderer(RendererSpec("miniature", "cpu", "auto", 1)), dragon({"num_inference_steps": 2})
    cache = renderer.load_cache(renderer.make_subject(plan).cache_buffer)
    for scene in plan.scenes:
        renderer.render([scene], cache)
    assert renderer.fingerprint == cache.cache.fingerprint and len(computed) == 1
