"""Pictures that are none, and models that cannot be used, as a run meets them: failed rows and one clear end."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import Event, Notice, WorkerLost
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.rendering import MadeSubject, RendererSpec
from consistory_ray.engine.workers.renderer import ConsiStoryRenderer, consistory_renderer
from consistory_ray.engine.workers.worker import RenderWorker, Report
from consistory_ray.errors import AssetError, CheckpointError
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.output.index.index import read_index
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Asset, SubjectPlan, make_plan
from consistory_ray.settings import MethodSettings
from consistory_ray.testing import FakeRenderer

MakeJob = Callable[..., RenderJob]


class Overflowing(FakeRenderer):
    """A renderer some of whose pictures are black, or errors in the place of pictures."""

    notices = ("the model is a strange one",)

    def _spoilt(self, asset: Asset) -> Any:
        image = self.picture(asset.asset_id)
        if asset.scene_id == "scene-1" or (asset.subject_id, asset.scene_id) == ("cat-1", "anchor-1"):
            return Image.new("RGB", image.size)
        return AssetError("numbers that are not finite") if asset.scene_id == "scene-2" else image

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        made = super().make_subject(subject)
        return MadeSubject([self._spoilt(anchor) for anchor in subject.anchors], made.cache_buffer, made.seconds)

    def render(self, scenes: Sequence[Asset], cache: Any, settings: MethodSettings | None = None) -> list[Any]:
        super().render(scenes, cache, settings)
        return [self._spoilt(scene) for scene in scenes]


REASONS = {"scene-1": "every pixel has the same colour (0, 0, 0)", "scene-2": "numbers that are not finite"}


def test_a_worker_reports_them_and_writes_the_others(make_job: MakeJob, tmp_path: Path) -> None:
    subject = make_plan(make_job(subjects=1, scenes=4)).subjects[0]
    own = RenderWorker(Overflowing.factory(), RendererSpec("fake", "cpu", "auto", 1), open_output(tmp_path))
    _, buffer = own.anchors(subject, True)
    assert buffer is not None
    report = own.scenes(subject, subject.scenes, buffer)
    assert isinstance(report, Report)
    failed = {asset.scene_id: report.failures.get(asset.asset_id) for asset in subject.scenes}
    for scene, failure in failed.items():
        assert (failure is None) == (scene not in REASONS)
        if failure is not None:
            assert failure.fault is Fault.BAD_ASSET and REASONS[scene] in failure.message
    assert {item.asset_id for item in report.delivered} == {subject.scenes[0].asset_id, subject.scenes[3].asset_id}
    assert not (tmp_path / subject.scenes[1].path).exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_lists_them_as_failed(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=2, scenes=4))
    heard: list[Event] = []
    options = RunOptions(workers=1, cpus_per_worker=1, batch_size=4, renderer=Overflowing.factory())
    summary = run_plan(plan, str(tmp_path), options, heard.append)
    found = {row["asset_id"]: row for row in read_index(str(tmp_path)).to_pylist()}
    good, bad = plan.subjects
    for asset in (*good.anchors, *good.scenes):
        row = found[asset.asset_id]
        assert row["status"] == ("failed" if asset.scene_id in REASONS else "ok")
        assert REASONS.get(asset.scene_id, "") in (row["error"] or "")
        assert (tmp_path / asset.path).exists() == (row["status"] == "ok")
    for asset in (*bad.anchors, *bad.scenes):  # a subject lives on all of its anchors
        assert found[asset.asset_id]["status"] == "failed"
        assert "every pixel has the same colour" in found[asset.asset_id]["error"]
    assert (summary.rendered, summary.failed) == (4, 2 + 6)
    told = [event.message for event in heard if isinstance(event, Notice)]
    assert told.count("the model is a strange one") == 1


def test_the_real_renderer_keeps_the_others_of_a_batch() -> None:
    renderer = ConsiStoryRenderer(RendererSpec("miniature", "cpu", "auto", 1))
    subject: dict[str, Any] = {"id": "dragon", "concept": "dragon", "subject": "a dragon"}
    subject |= {"anchors": ["in the forest"], "scenes": ["in space", "at sea", "at home", "at night"]}
    plan = make_plan(parse_job({"settings": {"num_inference_steps": 2}, "subjects": [subject]})).subjects[0]
    cache = renderer.load_cache(renderer.make_subject(plan).cache_buffer)
    expected = renderer.render(plan.scenes, cache)
    vae, calls = renderer._pipeline.pipe.vae, []
    decode = vae.decode

    def broken_twice(latents: Any, return_dict: bool = True) -> Any:
        calls.append(1)
        (picture,) = decode(latents, return_dict=False)
        return ({2: picture * 0 - 1, 4: picture * float("nan")}.get(len(calls), picture),)

    vae.decode = broken_twice
    found = renderer.render(plan.scenes, cache)
    assert isinstance(found[1], AssetError) and "same colour" in str(found[1])
    assert isinstance(found[3], AssetError) and "not finite" in str(found[3])
    for index in (0, 2):
        image, before = found[index], expected[index]
        assert isinstance(image, Image.Image) and isinstance(before, Image.Image)
        assert image.tobytes() == before.tobytes()


def test_a_vae_that_yields_nan_gives_failures_and_no_files(tmp_path: Path) -> None:
    """Its weights are broken: nothing of it is a black picture that passes for one."""
    import safetensors.torch

    import consistory_ray.miniature

    weights = Path(consistory_ray.miniature.__file__ or "").parent / "weights"
    model = Path(shutil.copytree(weights, tmp_path / "model"))
    (file,) = (model / "vae").glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    tensors["decoder.conv_in.weight"].fill_(float("nan"))
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    subject: dict[str, Any] = {"id": "dragon", "concept": "dragon", "subject": "a dragon"}
    subject |= {"anchors": ["in the forest"], "scenes": ["in space"]}
    job = parse_job({"model": str(model), "settings": {"num_inference_steps": 2}, "subjects": [subject]})
    (plan,) = make_plan(job).subjects
    own = RenderWorker(consistory_renderer, RendererSpec(str(model), "cpu", "auto", 1), open_output(tmp_path / "out"))
    failure, buffer = own.anchors(plan, True)
    assert buffer is None and isinstance(failure, Failure)
    assert failure.fault is Fault.BAD_ASSET and "not finite" in failure.message
    assert not list((tmp_path / "out").rglob("*.png"))


# Models that cannot be used -------------------------------------------------------------------------------------------


def incomplete(tmp_path: Path) -> Path:
    """The bundled model, of which a text encoder's file has lost some weights."""
    import safetensors.torch

    import consistory_ray.miniature

    weights = Path(consistory_ray.miniature.__file__ or "").parent / "weights"
    copy = Path(shutil.copytree(weights, tmp_path / "model"))
    file = copy / "text_encoder" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    kept = {key: value for key, value in tensors.items() if "layers.0.mlp" not in key}
    assert len(kept) < len(tensors)
    safetensors.torch.save_file(kept, file, {"format": "pt"})
    return copy


def test_a_worker_says_at_once_what_is_wrong_with_the_model(tmp_path: Path) -> None:
    model = str(incomplete(tmp_path))
    own = RenderWorker(consistory_renderer, RendererSpec(model, "cpu", "auto", 1), open_output(tmp_path / "out"))
    failure = own.hello()
    assert isinstance(failure, Failure) and failure.fault is Fault.BAD_MODEL
    assert "the model is incomplete" in failure.message and "text_encoder" in failure.message


@pytest.mark.usefixtures("ray_cluster")
def test_a_model_that_is_incomplete_ends_the_run_once(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(subjects=1, scenes=1).model_copy(update={"model": str(incomplete(tmp_path))})
    heard: list[Event] = []
    options = RunOptions(workers=1, cpus_per_worker=1, device="cpu")
    with pytest.raises(CheckpointError, match="the model is incomplete"):
        run_plan(make_plan(job), str(tmp_path / "out"), options, heard.append)
    assert not [event for event in heard if isinstance(event, WorkerLost)], "no worker died of it"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_single_file_with_its_configurations_needs_no_network(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.consistory.conftest import make_diffusers_pipeline
    from tests.consistory.original_layout import write_original_layout

    pipe = make_diffusers_pipeline(tmp_path / "tokenizer")
    pipe.save_pretrained(tmp_path / "configs")
    write_original_layout(pipe, tmp_path / "tiny.safetensors")
    for weights in (tmp_path / "configs").rglob("*.safetensors"):
        weights.unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = make_job(subjects=1, scenes=2, num_inference_steps=2, freeu=None)
    names = {"model": str(tmp_path / "tiny.safetensors"), "config": str(tmp_path / "configs")}
    plan = make_plan(made.model_copy(update=names))
    options = RunOptions(workers=1, cpus_per_worker=1, device="cpu")
    summary = run_plan(plan, str(tmp_path / "out"), options)
    assert (summary.state, summary.rendered) == ("complete", 4)


def test_what_is_told_about_a_model_is_no_warning_in_a_worker(tmp_path: Path) -> None:
    import consistory_ray.miniature

    weights = Path(consistory_ray.miniature.__file__ or "").parent / "weights"
    copy = Path(shutil.copytree(weights, tmp_path / "model"))
    index = (copy / "model_index.json").read_text()
    (copy / "model_index.json").write_text(index.replace("DDIMScheduler", "EulerAncestralDiscreteScheduler"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        renderer = ConsiStoryRenderer(RendererSpec(str(copy), "cpu", "auto", 1))
    assert len(renderer.notices) == 1 and "EulerAncestralDiscreteScheduler" in renderer.notices[0]
