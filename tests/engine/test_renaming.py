"""A neighbour that comes or goes changes names, and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.anchor_files import move_caches
from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import AnchorsReady, AssetDone, Event, Notice
from consistory_ray.engine.options import RunOptions
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.index.index import read_index
from consistory_ray.output.storage import open_output
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer

pytestmark = pytest.mark.usefixtures("ray_cluster")


def cats(**scenes: list[str]) -> Plan:
    """Cats of some colours, in the order given."""
    subjects = [
        {"concept": "cat", "style": f"a photo of a {colour} cat", "anchors": ["at home", "outside"], "scenes": places}
        for colour, places in scenes.items()
    ]
    return make_plan(parse_job({"name": "cats", "model": "fake", "subjects": subjects}))


def render(plan: Plan, url: Path) -> list[Event]:
    events: list[Event] = []
    options = RunOptions(workers=1, cpus_per_worker=1, renderer=FakeRenderer.factory())
    run_plan(plan, str(url), options, events.append).raise_for_state()
    return events


def pictures(url: Path) -> dict[str, str]:
    """The pixels' digests of all pictures, by asset id."""
    from PIL import Image

    rows = read_index(str(url)).to_pylist()
    return {row["asset_id"]: hashlib.sha256(Image.open(url / row["path"]).tobytes()).hexdigest() for row in rows}


def made(events: list[Event]) -> list[Any]:
    return [event.asset.asset_id for event in events if isinstance(event, AssetDone)]


def test_a_subject_stays_itself_whoever_comes_before_it(tmp_path: Path) -> None:
    alone, both = cats(ginger=["in space"]), cats(black=["in space"], ginger=["in space"])
    render(alone, tmp_path)
    before = pictures(tmp_path)
    events = render(both, tmp_path)
    assert set(made(events)) == {asset.asset_id for asset in both.subjects[0].assets()}
    assert before.items() <= pictures(tmp_path).items()
    assert any(isinstance(event, Notice) and "moved" in event.message for event in events)

    more = cats(ginger=["in space", "at sea"], black=["in space"])
    events = render(more, tmp_path)
    assert len(made(events)) == 1, "the anchors' cache has moved with its subject"
    assert not [event for event in events if isinstance(event, AnchorsReady) and event.made]
    found = verify(str(tmp_path))
    assert found.is_sound, found.lines()


def test_the_words_about_a_subject_move_with_its_cache(tmp_path: Path) -> None:
    alone, both = cats(ginger=["in space"]), cats(black=["in space"], ginger=["in space"])
    render(alone, tmp_path)
    store = open_output(str(tmp_path))
    assert move_caches(store, both) == 1
    folder = tmp_path / "anchors" / both.subjects[1].subject_id
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".safetensors", ".sha256"]
    assert json.loads((folder / "subject.json").read_text())["subject_id"] == folder.name
    assert {file.suffix for file in (tmp_path / "anchors" / "cat").iterdir()} == {".png"}
    assert move_caches(store, both) == 0
