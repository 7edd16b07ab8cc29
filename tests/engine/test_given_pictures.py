"""Runs whose subjects are given pictures: copied to the output first, then nothing but the output is needed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.engine.events import Event, RunSummary
from consistory_ray.engine.inputs import InputReader, copy_inputs
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import run_job
from consistory_ray.errors import AssetError, InputError
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.output.verify import verify
from consistory_ray.pictures import fit, open_picture
from consistory_ray.pictures.provenance import TRAINED, source_type
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer
from tests.pictures.making import disc, encoded, gradient


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    (folder / "one.png").write_bytes(encoded(gradient()))
    (folder / "two.jpg").write_bytes(encoded(gradient(60, 60), "JPEG"))
    (folder / "mask.png").write_bytes(encoded(Image.fromarray(disc())))
    return folder


def job(folder: Path, **changes: Any) -> RenderJob:
    pictures = [{"image": f"{folder}/one.png", "mask": f"{folder}/mask.png"}, {"image": f"{folder}/two.jpg"}]
    subject = {"id": "mia", "concept": "cat", "subject": "a cat", "details": "with a hat", "pictures": pictures}
    scenes = [{"id": f"scene-{number}", "prompt": f"at place {number}"} for number in range(4)]
    return parse_job({"name": "own", "model": "fake", "subjects": [{**subject, "scenes": scenes, **changes}]})


def run(job: RenderJob, out: Path, events: list[Event] | None = None, **fake: Any) -> RunSummary:
    options = RunOptions(workers=1, cpus_per_worker=1, renderer=FakeRenderer.factory(**fake))
    return run_job(job, out, options, on_event=None if events is None else events.append)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_keeps_what_it_was_given(folder: Path, tmp_path: Path) -> None:
    out, read = tmp_path / "out", job(folder)
    assert run(read, out).state == "complete"
    (subject,) = make_plan(read).subjects
    copies = sorted(path.name for path in (out / "inputs").iterdir())
    assert copies == sorted(Path(file.path).name for picture in subject.pictures for file in picture.files)
    assert all(hashlib.sha256((out / "inputs" / name).read_bytes()).hexdigest() == name[:64] for name in copies)
    with Image.open(out / subject.anchors[1].path) as anchor:
        given = fit(open_picture((folder / "two.jpg").read_bytes(), "image"), 32, 32)
        assert (np.asarray(anchor) == np.asarray(given.image)).all()
    assert {source_type(out / anchor.path) for anchor in subject.anchors} == {None}, "nobody said how they were made"
    assert {source_type(out / scene.path) for scene in subject.scenes} == {TRAINED}
    assert (out / "anchors/mia/anchor-0.mask.png").is_file()
    assert "anchor-0.mask.png" in (out / "gallery/index.html").read_text()
    checked = verify(str(out))
    assert checked.is_sound and not checked.orphans
    shutil.rmtree(folder)  # nothing but the output is needed from now on
    for path in out.glob("images/mia/scene-[01].png"):
        path.unlink()
    shutil.rmtree(out / "anchors")
    record = read_run_record(str(out))
    assert record is not None
    again = run(parse_job(record.job), out)
    assert (again.state, again.rendered) == ("complete", 4)
    assert len(read_index(str(out))) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_a_renamed_subject_takes_its_masks_along(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seeds = {"pictures": [{"image": f"{folder}/one.png", "seed": 1}], "scenes": [{"prompt": "here", "seed": 2}]}
    run(job(folder, **seeds), out)
    summary = run(job(folder, **seeds, **{"id": "mina"}), out)
    assert summary.rendered == 0
    assert {path.name for path in (out / "anchors/mina").glob("*.png")} == {"anchor-0.png", "anchor-0.mask.png"}
    assert not list((out / "anchors/mia").glob("*.png"))


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_copy_is_found_and_made_again(folder: Path, tmp_path: Path) -> None:
    out, read = tmp_path / "out", job(folder)
    file = next(iter(make_plan(read).inputs()))
    copy = out / file.path
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"x" * file.nbytes)
    failed = run(read, out)
    assert failed.state == "failed" and "is damaged" in failed.failures[0].error
    assert [item.path for item in verify(str(out), repair=True).listed] == [file.path]
    assert not copy.exists()
    options = RunOptions(workers=1, cpus_per_worker=1, only_failed=True, renderer=FakeRenderer.factory())
    assert run_job(read, out, options).state == "complete"


def test_copies_are_made_once_and_whole(folder: Path, tmp_path: Path) -> None:
    store, files = open_output(tmp_path / "out"), list(make_plan(job(folder)).inputs())
    (tmp_path / "out/inputs").mkdir(parents=True)
    (tmp_path / "out" / files[1].path).write_bytes(b"half of")
    assert copy_inputs(store, files) == 3
    assert copy_inputs(store, files) == 0
    shutil.rmtree(folder)
    assert copy_inputs(store, files) == 0
    reader = InputReader(str(tmp_path / "out"))
    assert all(hashlib.sha256(reader.read(file)).hexdigest() == file.sha256 for file in files)


def test_originals_that_are_gone_or_others_are_told(folder: Path, tmp_path: Path) -> None:
    store, files = open_output(tmp_path / "out"), list(make_plan(job(folder)).inputs())
    (folder / "one.png").unlink()
    (folder / "two.jpg").write_bytes(b"another")
    with pytest.raises(InputError) as caught:
        copy_inputs(store, files)
    told = {problem.path.rpartition("/")[2]: str(problem) for problem in caught.value.problems}
    assert set(told) == {"one.png", "two.jpg"}
    assert "no such file" in told["one.png"] and "another picture" in told["two.jpg"]
    with pytest.raises(AssetError, match="cannot be read"):
        InputReader(str(tmp_path / "out")).read(files[0])


def test_nothing_is_copied_once_the_output_is_lost(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="taken over"):
        copy_inputs(open_output(tmp_path / "out"), make_plan(job(folder)).inputs(), lambda: "taken over")
    assert not list(tmp_path.glob("out/inputs/*"))


def test_jobs_without_pictures_have_no_such_folder(tmp_path: Path) -> None:
    assert copy_inputs(open_output(tmp_path / "out"), []) == 0
    assert not (tmp_path / "out").exists()


def test_credentials_stay_out_of_the_record(folder: Path, tmp_path: Path) -> None:
    from consistory_ray.output.run_record import RunRecord, write_run_record

    given = job(folder).model_dump(mode="json", exclude_unset=True)
    given["subjects"][0]["pictures"][0]["image"]["url"] = "https://user:hunter2@host/x.png?X-Amz-Signature=cafe"
    write_run_record(str(tmp_path), RunRecord("own", "fake", given))
    written = (tmp_path / "run.json").read_text()
    assert "hunter2" not in written and "cafe" not in written and "host/x.png" in written
