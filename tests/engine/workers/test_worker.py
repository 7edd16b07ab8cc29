"""A worker without Ray: what it writes, what it reports, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.workers.anchor_store import StoredCache, checksum_path, load_cache, save_cache
from consistory_ray.engine.workers.worker import Hello, RenderWorker, Report
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.assets import open_picture, read_metadata
from consistory_ray.output.storage import open_output
from consistory_ray.pictures import decode_mask
from consistory_ray.plan.plan import SubjectPlan, make_plan
from consistory_ray.testing import FakeRenderer

SPEC = RendererSpec("fake", "cpu", "auto", 1)


@pytest.fixture
def subject(make_job: Callable[..., RenderJob]) -> SubjectPlan:
    return make_plan(make_job(subjects=1, scenes=3)).subjects[0]


def worker(url: Path, **fake: Any) -> RenderWorker:
    return RenderWorker(FakeRenderer.factory(**fake), SPEC, open_output(url))


def test_anchors_then_scenes(subject: SubjectPlan, tmp_path: Path) -> None:
    own = worker(tmp_path, cache_bytes=500)
    report, buffer = own.anchors(subject, True)
    assert isinstance(report, Report) and buffer is not None
    assert (report.made, report.cache_bytes, len(report.delivered)) == (True, 500, 2)
    assert report.machine is not None and report.machine.disk_size > 0
    told = [decode_mask(item.mask) for item in report.delivered]
    assert all(mask is not None and mask[1, 1] and not mask[0, 0] for mask in told), (
        "where the subject is, for the index"
    )
    assert report.time is not None and not report.time.masks, "they travel once"
    assert own.save(subject, buffer, report.cache_sha256) is None
    report = own.scenes(subject, subject.scenes, buffer)
    assert isinstance(report, Report) and not report.failures
    assert report.machine is None, "the machine was read a moment before, with the anchors"
    data = (tmp_path / subject.scenes[0].path).read_bytes()
    metadata = read_metadata(data)
    assert metadata is not None
    assert (metadata["asset_id"], metadata["model"]) == (subject.scenes[0].asset_id, "fake")
    assert metadata["model_fingerprint"] == FakeRenderer().fingerprint

    again, loaded = worker(tmp_path).anchors(subject, False)
    assert isinstance(again, Report) and not again.made
    np.testing.assert_array_equal(loaded, buffer)


def test_the_png_level_changes_files_and_no_pixels(subject: SubjectPlan, tmp_path: Path) -> None:
    pictures, sizes = [], []
    for level in (0, 1, 9):
        own = RenderWorker(FakeRenderer.factory(), SPEC, open_output(tmp_path / str(level)), level)
        _, buffer = own.anchors(subject, True)
        assert buffer is not None
        report = own.scenes(subject, subject.scenes[:1], buffer)
        assert isinstance(report, Report) and report.encoding > 0 and report.writing > 0
        data = (tmp_path / str(level) / subject.scenes[0].path).read_bytes()
        pictures.append((open_picture(data).tobytes(), read_metadata(data)))
        sizes.append(len(data))
    assert pictures[0] == pictures[1] == pictures[2]
    assert sizes[0] > sizes[1] > sizes[2]


def test_errors_come_back_as_values(subject: SubjectPlan, tmp_path: Path) -> None:
    own = worker(tmp_path, faults={"scene-1": "bad", "anchor-1": "error"})
    failure, buffer = own.anchors(subject, True)
    assert isinstance(failure, Failure) and failure.fault is Fault.ERROR and buffer is None
    _, buffer = worker(tmp_path).anchors(subject, True)
    assert buffer is not None
    failure = own.scenes(subject, subject.scenes, buffer)
    assert isinstance(failure, Failure) and failure.fault is Fault.BAD_ASSET


def test_a_picture_that_cannot_be_written_fails_alone(subject: SubjectPlan, tmp_path: Path) -> None:
    own = worker(tmp_path)
    _, buffer = own.anchors(subject, True)
    assert buffer is not None
    (tmp_path / subject.scenes[1].path).mkdir(parents=True)
    (tmp_path / "damaged").touch()  # what is in the way cannot be moved there
    report = own.scenes(subject, subject.scenes, buffer)
    assert isinstance(report, Report)
    assert [failure.fault for failure in report.failures.values()] == [Fault.STORAGE]
    assert list(report.failures) == [subject.scenes[1].asset_id]
    assert len(report.delivered) == 2


def test_a_draining_worker_refuses_new_calls(subject: SubjectPlan, tmp_path: Path) -> None:
    own = worker(tmp_path)
    own.drain()
    failure, _ = own.anchors(subject, True)
    assert isinstance(failure, Failure) and failure.fault is Fault.NODE_DIED


def test_a_worker_says_whether_it_sees_the_output(tmp_path: Path) -> None:
    hello = worker(tmp_path).hello()
    assert isinstance(hello, Hello) and not hello.sees_output
    (tmp_path / "run.json").write_text("{}")
    hello = worker(tmp_path).hello()
    assert isinstance(hello, Hello) and hello.sees_output


def test_a_cache_is_loaded_only_whole(tmp_path: Path) -> None:
    store, path = open_output(tmp_path), "anchors/cat/key.safetensors"
    assert load_cache(store, path) == StoredCache()
    digest = save_cache(store, path, np.arange(200, dtype=np.uint8))
    found = load_cache(store, path)
    assert found.buffer is not None and (found.sha256, found.problem) == (digest, "")
    assert not found.buffer.flags.writeable
    (tmp_path / path).write_bytes(b"short")
    found = load_cache(store, path)
    assert found.buffer is None and found.sha256 == digest and "damaged" in found.problem
    store.delete(checksum_path(path))
    assert load_cache(store, path) == StoredCache()
