"""A plan depends on what a job says, never on where it says it."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.errors import JobError
from consistory_ray.jobs.ids import id_problem
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.plan.plan import Asset, Plan, as_begun, make_plan
from consistory_ray.settings import model_revision


def job(*subjects: dict[str, Any], **changes: Any) -> RenderJob:
    return parse_job({"name": "test", "model": "acme/xl", "subjects": list(subjects), **changes})


def dragon(*scenes: Any, **changes: Any) -> dict[str, Any]:
    return {
        "id": "moss",
        "concept": "dragon",
        "style": "a drawing of",
        "subject": "a dragon",
        "anchors": ["in the forest", "on the beach"],
        "scenes": list(scenes) or ["in space"],
        **changes,
    }


def by_path(plan: Plan) -> dict[str, Asset]:
    return {asset.path: asset for asset in plan.assets()}


def test_a_plan_names_every_picture() -> None:
    plan = make_plan(job(dragon("in space", {"id": "night", "prompt": "at night", "seed": 3, "count": 2})))
    assert (plan.name, plan.model, plan.anchor_count, plan.scene_count) == ("test", "acme/xl", 2, 3)
    assert [(asset.kind, asset.scene_id, asset.path) for asset in plan.assets()] == [
        ("anchor", "anchor-0", "anchors/moss/anchor-0.png"),
        ("anchor", "anchor-1", "anchors/moss/anchor-1.png"),
        ("scene", "in-space", "images/moss/in-space.png"),
        ("scene", "night-0", "images/moss/night-0.png"),
        ("scene", "night-1", "images/moss/night-1.png"),
    ]
    subject = plan.subjects[0]
    assert [asset.seed for asset in subject.scenes[1:]] == [3, 4]
    assert subject.scenes[0].prompt == "a drawing of a dragon in space"
    assert subject.cache_path == f"anchors/moss/{subject.subject_key[:16]}.safetensors"
    assert all(re.fullmatch("[0-9a-f]{32}", asset.asset_id) for asset in plan.assets())


def test_ids_and_seeds_stay_as_they_are_in_every_version() -> None:
    """Runs of earlier versions resume: change these values only together with PLAN_FORMAT."""
    plan = make_plan(job(dragon(), settings={"seed": 7}))
    subject = plan.subjects[0]
    assert subject.subject_key == "67b5cf2f8ade03ead6e5e6f547f29c52"
    assert [(asset.asset_id, asset.seed) for asset in plan.assets()] == [
        ("0f9ae0b179799766ee0df8dbde27c1ac", 1588813328),
        ("5685cf3d9d6f10c6842c4e0e4da7c869", 3405469675),
        ("3e55aee553920a74f24b373acd8e50d1", 2967768023),
    ]


def test_the_order_and_the_neighbours_of_a_scene_make_no_difference() -> None:
    scenes = ["in space", {"id": "a", "prompt": "at night", "count": 3}, {"prompt": "at dawn", "seed": 5}, "at sea"]
    whole = by_path(make_plan(job(dragon(*scenes), dragon("in space", id="other"))))
    turned = by_path(make_plan(job(dragon("in space", id="other"), dragon(*reversed(scenes)))))
    assert turned == whole
    alone = by_path(make_plan(job(dragon("at sea"))))
    assert alone.items() <= whole.items()


def test_a_new_count_keeps_the_pictures_that_were_there() -> None:
    few = make_plan(job(dragon({"id": "a", "prompt": "at night", "count": 2}, "at night")))
    many = make_plan(job(dragon({"id": "a", "prompt": "at night", "count": 9}, "at night")))
    assert by_path(few).items() <= by_path(many).items()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"num_inference_steps": 20}},
        {"settings": {"freeu": None}},
        {"settings": {"torch_dtype": "float32"}},
        {"settings": {"seed": 1}},
        {"model": "acme/other"},
    ],
)
def test_what_changes_pictures_changes_all_ids(changes: dict[str, Any]) -> None:
    before, after = make_plan(job(dragon())), make_plan(job(dragon(), **changes))
    assert not {asset.asset_id for asset in before.assets()} & {asset.asset_id for asset in after.assets()}
    assert before.subjects[0].cache_path != after.subjects[0].cache_path


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"settings": {"batch_size": 4, "png_level": 6}},
        {"settings": {"torch_dtype": "auto", "seed": 0}},
    ],
)
def test_what_changes_no_picture_changes_no_id(changes: dict[str, Any]) -> None:
    assert make_plan(job(dragon())).subjects == make_plan(job(dragon(), **changes)).subjects


def test_models_are_looked_up_as_people_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's own settings and the revision of its files count however its folder is written."""
    (tmp_path / "xl").mkdir()
    (tmp_path / "xl" / "consistory.json").write_text('{"num_inference_steps": 7}')
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("~/xl", f"file://{tmp_path}/xl", f"{tmp_path}/xl"):
        assert make_plan(job(dragon(), model=model)).subjects[0].settings.num_inference_steps == 7
        assert model_revision(model) == model_revision(str(tmp_path / "xl")) is not None


def test_configurations_of_a_single_file_count_by_their_content(tmp_path: Path) -> None:
    """Where they lie makes no difference, nor do weights that lie beside them."""
    for place in ("here", "there", "edited"):
        (tmp_path / place / "scheduler").mkdir(parents=True)
        text = "v_prediction" if place == "edited" else "epsilon"
        (tmp_path / place / "scheduler" / "scheduler_config.json").write_text(f'{{"prediction_type": "{text}"}}')
    (tmp_path / "there" / "weights.safetensors").write_bytes(b"1234")
    plans = {
        place: make_plan(job(dragon(), model="model.safetensors", config=str(tmp_path / place)))
        for place in ("here", "there", "edited")
    }
    plain = make_plan(job(dragon(), model="model.safetensors"))
    assert plans["here"].subjects == plans["there"].subjects
    assert len({plan.subjects[0].subject_key for plan in (plain, plans["here"], plans["edited"])}) == 3
    assert plans["here"].config == str(tmp_path / "here") and plain.config is None
    assert make_plan(job(dragon(), model="model.safetensors", config=None)).subjects == plain.subjects


def test_a_default_that_is_written_out_is_the_same_job() -> None:
    written = job(dragon(), settings={"num_inference_steps": 50, "guidance_scale": 5, "freeu": [0.6, 0.4, 1.1, 1.2]})
    assert make_plan(written).subjects == make_plan(job(dragon())).subjects


def test_an_edit_changes_only_what_it_touches() -> None:
    before = by_path(make_plan(job(dragon("in space", "at sea"), dragon(id="other"))))
    after = by_path(make_plan(job(dragon("in space", "at home"), dragon(id="other", anchors=["asleep", "awake"]))))
    kept = {path for path in before if after.get(path) == before[path]}
    assert kept == {"anchors/moss/anchor-0.png", "anchors/moss/anchor-1.png", "images/moss/in-space.png"}


def test_a_new_style_keeps_the_seeds() -> None:
    before, after = make_plan(job(dragon())), make_plan(job(dragon(style="a photo of")))
    assert [asset.seed for asset in before.assets()] == [asset.seed for asset in after.assets()]


def test_equal_scenes_get_different_seeds_and_names() -> None:
    scenes = make_plan(job(dragon(*["in space"] * 3, {"prompt": "in space", "count": 500}))).subjects[0].scenes
    assert len({asset.seed for asset in scenes}) == len({asset.path for asset in scenes}) == 503
    assert [asset.scene_id for asset in scenes[:4]] == ["in-space", "in-space-2", "in-space-3", "in-space-4-0"]


def test_derived_seeds_keep_away_from_written_ones() -> None:
    derived = make_plan(job(dragon("in space"))).subjects[0].scenes[0].seed
    scenes = make_plan(job(dragon("in space", {"prompt": "in space", "seed": derived}))).subjects[0].scenes
    assert scenes[1].seed == derived != scenes[0].seed


def test_subjects_without_ids_get_them_from_their_own_words() -> None:
    others = [dragon(id=None, anchors=[f"at place {n}"]) for n in range(3)]
    ids = [subject.subject_id for subject in make_plan(job(*others, dragon(id="Dragon-2"))).subjects]
    assert all(re.fullmatch("dragon-[0-9a-f]{8}", name) for name in ids[:3]) and ids[3] == "Dragon-2"
    assert [make_plan(job(one)).subjects[0].subject_id for one in others] == ["dragon"] * 3


def ginger(**changes: Any) -> dict[str, Any]:
    places = {"anchors": ["at home", "outside"], "scenes": ["in space", "at sea"]}
    return {"concept": "cat", "style": "a photo of a ginger cat", **places, **changes}


NEIGHBOURS: list[dict[str, Any]] = [
    ginger(style="a photo of a black cat"),
    ginger(id="cat", style="a photo of a black cat"),
    ginger(subject="CAT", style="an oil painting of a"),
    ginger(anchors=["on a roof"]),
    ginger(subject="cat!"),
    dragon(id=None),
]


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_a_subject_does_not_depend_on_its_neighbours(neighbour: dict[str, Any]) -> None:
    alone = {asset.asset_id: asset.seed for asset in make_plan(job(ginger())).assets()}
    for subjects in ([neighbour, ginger()], [ginger(), neighbour]):
        plan = make_plan(job(*subjects))
        assert alone.items() <= {asset.asset_id: asset.seed for asset in plan.assets()}.items()
    assert by_path(make_plan(job(neighbour, ginger()))) == by_path(plan), "nor do names depend on an order"
    assert len(by_path(plan)) == plan.anchor_count + plan.scene_count


def test_scenes_do_not_trade_names_with_their_places() -> None:
    scenes = ["in space!", "in space", "In Space", {"id": "in-sea", "prompt": "at home"}, "in sea"]
    plan, turned = make_plan(job(dragon(*scenes))), make_plan(job(dragon(*reversed(scenes))))
    assert by_path(plan) == by_path(turned)


def test_an_output_of_the_numbering_version_keeps_its_individuals() -> None:
    """There the second of two subjects with one name had the seeds of an id with a 2."""
    first, second = ginger(), ginger(style="a photo of a black cat")
    old = {asset.asset_id for asset in make_plan(job(ginger(id="cat"), {**second, "id": "cat-2"})).assets()}
    for subjects in ([first, second], [second, first], [first, ginger(style="a photo of a grey cat"), second]):
        plan = as_begun(make_plan(job(*subjects)), old)
        assert old <= {asset.asset_id for asset in plan.assets()}
        assert not any(subject.former for subject in plan.subjects)
    fresh = make_plan(job(first, second))
    assert as_begun(fresh, {fresh.subjects[1].scenes[0].asset_id, *old}) == fresh, "its own seeds come first"
    assert as_begun(fresh, ()) == fresh
    explicit = make_plan(job(ginger(), ginger(id="Cat", style="a photo of a black cat")))
    former = make_plan(job(ginger(id="cat-2"))).subjects[0].scenes
    assert as_begun(explicit, {former[1].asset_id}).subjects[0].scenes[0].seed == former[0].seed


def test_scenes_never_take_the_names_of_anchors() -> None:
    scenes = make_plan(job(dragon("anchor 0", {"prompt": "anchor", "count": 2}, "anchors away"))).subjects[0].scenes
    names = [asset.scene_id for asset in scenes]
    assert all(re.fullmatch("scene-anchor-0-[0-9a-f]{8}|scene-anchor-[0-9a-f]{8}-[01]", name) for name in names[:3])
    assert names[3] == "scene-anchors-away"


def test_one_individual_under_two_names_is_refused() -> None:
    anchors = [{"prompt": "here", "seed": 1}, {"prompt": "there", "seed": 2}]
    with pytest.raises(JobError, match=r"subjects\[1\]\.anchors: give its anchors other seeds"):
        make_plan(job(dragon(id="a", anchors=anchors), dragon(id="b", anchors=anchors)))
    make_plan(job(dragon(id="a", anchors=anchors), dragon(id="b", anchors=anchors, style="a photo of")))


def test_planning_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from consistory_ray import make_plan, parse_job;"
        "scenes = {'anchors': ['a'], 'scenes': ['b']};"
        "make_plan(parse_job({'model': 'acme/xl', 'subjects': [{'concept': 'x', 'subject': 'x', **scenes}]}));"
        "heavy = {'torch', 'ray', 'diffusers', 'numpy', 'pyarrow', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_planning_is_fast_and_lean() -> None:
    """A hundredth of the largest job; a million scenes take a hundred times this."""
    import time
    import tracemalloc

    whole = job(dragon(*(f"in place number {n} of the world" for n in range(10_000))))
    before = time.process_time()
    plan = make_plan(whole)
    assert time.process_time() - before < 1.5
    tracemalloc.start()
    again = make_plan(whole)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert again == plan
    assert size < 10_000 * 800


_scene = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["in space", "at sea", "at night", "in space!", "龙", "anchor 1", "x " * 60])},
    optional={"count": st.integers(1, 4), "id": st.sampled_from(["a", "b-1", "in-space", "C"])},
)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True))
    subjects = []
    for name in names:
        scenes = draw(st.lists(_scene, min_size=1, max_size=6, unique_by=lambda scene: scene.get("id") or object()))
        subjects.append(
            dragon(*scenes, id=name, anchors=draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3)))
        )
    return {"name": "p", "model": "acme/xl", "settings": {"seed": draw(st.integers(0, 3))}, "subjects": subjects}


@settings(deadline=None, max_examples=100)
@given(jobs(), st.randoms(use_true_random=False))
def test_any_plan_has_unique_safe_names_and_no_order(data: dict[str, Any], shuffle: random.Random) -> None:
    plan = make_plan(parse_job(data))
    assets = list(plan.assets())
    assert len({asset.asset_id for asset in assets}) == len({asset.path.lower() for asset in assets}) == len(assets)
    assert all(id_problem(part) is None for asset in assets for part in (asset.subject_id, asset.scene_id))
    assert plan.scene_count == sum(scene.get("count", 1) for subject in data["subjects"] for scene in subject["scenes"])
    shuffle.shuffle(data["subjects"])
    turned = make_plan(parse_job(data))
    assert {subject.subject_id: subject for subject in turned.subjects} == {s.subject_id: s for s in plan.subjects}


@settings(deadline=None, max_examples=50)
@given(jobs(), st.randoms(use_true_random=False))
def test_scenes_can_be_shuffled(data: dict[str, Any], shuffle: random.Random) -> None:
    for subject in data["subjects"]:  # only equal prompts are told apart by their order
        subject["scenes"] = list({scene["prompt"]: scene for scene in subject["scenes"]}.values())
    before = make_plan(parse_job(data))
    for subject in data["subjects"]:
        shuffle.shuffle(subject["scenes"])
    assert _pictures(make_plan(parse_job(data))) == _pictures(before)


def _pictures(plan: Plan) -> set[Asset]:
    return set(plan.assets())


def test_other_weights_in_the_same_folder_are_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "unet.safetensors"

    def ids(content: bytes) -> set[str]:
        weights.write_bytes(content)
        return {asset.asset_id for asset in make_plan(job(dragon(), model=str(tmp_path))).assets()}

    first = ids(b"a" * 4_000_000)
    assert ids(b"a" * 4_000_000) == first
    assert ids(b"a" * 3_999_999 + b"b").isdisjoint(first)
