"""A worker and pictures that are given: what it takes for the subject is shown, whether or not it can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.inputs import copy_inputs
from consistory_ray.engine.rendering import MadeSubject, RendererSpec, UnclearPicturesError
from consistory_ray.engine.workers.renderer import ConsiStoryRenderer
from consistory_ray.engine.workers.worker import RenderWorker, Report
from consistory_ray.jobs.job import load_job, parse_job
from consistory_ray.output.assets import asset_parameters
from consistory_ray.output.gallery.pages import build_gallery
from consistory_ray.output.index.parts import write_part
from consistory_ray.output.index.rows import IndexRow, rows_to_table
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.pictures import draw_mask
from consistory_ray.plan.plan import SubjectPlan, make_plan
from consistory_ray.testing import FakeRenderer
from tests.pictures.making import disc, encoded, gradient

PIPELINE = Path(__file__).parents[3] / "pipelines/own_character.yaml"


class Doubtful(FakeRenderer):
    """Finds the subject in the first picture only, or with doubts in the second."""

    fails = True

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        made = super().make_subject(subject)
        masks: Sequence[Any] = [disc(8, 8), np.zeros((8, 8), bool)]
        if self.fails:
            raise UnclearPicturesError("pictures[1]: the subject was not found", made.images, masks)
        return MadeSubject(made.images, made.cache_buffer, made.seconds, masks=masks, notices={1: "it is unclear"})


class Unsure(Doubtful):
    """The same, without failing."""

    fails = False


@pytest.fixture
def subject(tmp_path: Path) -> SubjectPlan:
    (tmp_path / "one.png").write_bytes(encoded(gradient(64, 64)))
    pictures = [f"{tmp_path}/one.png", {"image": f"{tmp_path}/one.png", "prompt": "here"}]
    words = {"concept": "cat", "subject": "a cat", "id": "mia"}
    (subject,) = make_plan(parse_job({"subjects": [{**words, "pictures": pictures, "scenes": ["there"]}]})).subjects
    return subject


def taken(subject: SubjectPlan, kind: type[FakeRenderer], store: OutputStore) -> tuple[Report | Failure, Any]:
    copy_inputs(store, (file for picture in subject.pictures for file in picture.files))
    return RenderWorker(kind.factory(), RendererSpec("fake", "cpu", "auto", 1, inputs=store.url), store).anchors(
        subject, True
    )


def test_a_subject_that_is_not_found_fails_and_is_shown(subject: SubjectPlan, tmp_path: Path) -> None:
    store = open_output(tmp_path / "out")
    failure, buffer = taken(subject, Doubtful, store)
    assert isinstance(failure, Failure) and buffer is None
    assert failure.fault is Fault.BAD_ASSET and failure.message == "pictures[1]: the subject was not found"
    assert not store.exists(subject.anchors[0].path)
    with Image.open(tmp_path / "out/anchors/mia/anchor-0.mask.png") as shown:
        drawn = draw_mask(gradient(64, 64).resize((32, 32), Image.Resampling.LANCZOS), disc(8, 8))
        assert (np.asarray(shown) == np.asarray(drawn)).all()
    assert (tmp_path / "out/anchors/mia/anchor-1.mask.png").is_file()
    rows = [
        IndexRow.failed(asset_parameters(one, subject, model="fake", model_fingerprint="0" * 64), str(failure))
        for one in subject.anchors
    ]
    write_part(store, rows_to_table(rows))
    build_gallery(store, subject.assets())
    page = (tmp_path / "out/gallery/index.html").read_text()
    assert "../anchors/mia/anchor-1.mask.png" in page and "not found" in page


def test_doubts_are_told(subject: SubjectPlan, tmp_path: Path) -> None:
    report, buffer = taken(subject, Unsure, open_output(tmp_path / "out"))
    assert isinstance(report, Report) and buffer is not None
    assert report.notice == "pictures[1] of mia: it is unclear"


def test_the_bundled_model_takes_pictures(tmp_path: Path) -> None:
    plan = make_plan(load_job(str(PIPELINE)))
    store = open_output(tmp_path / "out")
    copy_inputs(store, plan.inputs())
    subject = plan.subjects[1]
    renderer = ConsiStoryRenderer(RendererSpec("miniature", "cpu", "auto", 1, inputs=store.url))
    made = renderer.make_subject(replace(subject, settings=subject.settings.replace(num_inference_steps=4)))
    originals = [PIPELINE.parent / "pictures" / name for name in ("otto-1.png", "otto-2.png", "otto-2-mask.png")]
    for image, path in zip(made.images, originals, strict=False):
        with Image.open(path) as original:
            assert (np.asarray(image) == np.asarray(original)).all()
    with Image.open(originals[2]) as mask:
        given = np.asarray(mask.convert("L").resize(made.masks[1].shape[::-1], Image.Resampling.BOX)) >= 128
    overlaps = [(made.masks[1] & given).sum() / (made.masks[1] | given).sum(), made.masks[0].mean()]
    assert overlaps[0] > 0.8 and 0.1 < overlaps[1] < 0.6
    assert made.notices.keys() <= {0, 1}
    assert renderer.load_cache(made.cache_buffer).cache.concepts == ("penguin",)
