"""The job models and the sense of a job: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from consistory_ray.errors import JobError
from consistory_ray.guards.problems import FIXES
from consistory_ray.jobs.adapters import Embedding, LoRA
from consistory_ray.jobs.checks import MAX_SEED, mentions
from consistory_ray.jobs.controls import Control
from consistory_ray.jobs.ids import MAX_ID, Wanted, distinct_names, id_problem, seed_scope, slug
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.jobs.quality import Quality
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.jobs.subject import Anchor, GivenPicture, Scene, Subject


def subject(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": "moss-dragon",
        "concept": "dragon",
        "style": "a drawing of",
        "subject": "a dragon",
        "anchors": ["in the forest", "on the beach"],
        "scenes": ["in space", {"id": "night", "prompt": "in the city at night", "seed": 3, "count": 2}],
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def job(*subjects: Any, **changes: Any) -> dict[str, Any]:
    return {"name": "quickstart", "model": "acme/xl", "subjects": list(subjects or [subject()]), **changes}


def problems(data: Any) -> dict[str, str]:
    """Path to fix of everything wrong with the data of a job."""
    with pytest.raises(JobError) as caught:
        parse_job(data)
    found = {problem.path: problem.fix for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem for one place"
    assert all(found.values())
    return found


def test_a_job_of_the_documentation_is_read() -> None:
    read = parse_job(job(settings={"num_inference_steps": 50, "seed": 7}))
    dragon = read.subjects[0]
    assert dragon.concept == ("dragon",)
    assert dragon.anchors == (Anchor(prompt="in the forest"), Anchor(prompt="on the beach"))
    assert dragon.scenes[1] == Scene(prompt="in the city at night", id="night", seed=3, count=2)
    assert dragon.prompt(dragon.scenes[0].prompt) == "a drawing of a dragon in space"
    assert (read.settings.seed, read.settings.num_inference_steps) == (7, 50)


def test_a_job_is_a_frozen_value_that_survives_dumping_and_pickling() -> None:
    read = parse_job(job())
    with pytest.raises(ValidationError):
        read.name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        read.subjects[0].scenes[0].prompt = "other"  # type: ignore[misc]
    assert parse_job(json.loads(read.model_dump_json(exclude_unset=True))) == read
    assert pickle.loads(pickle.dumps(read)) == read


def test_python_users_get_pydantics_error_with_the_same_findings() -> None:
    with pytest.raises(ValidationError, match="must contain"):
        Subject(concept="cat", subject="a dog", anchors=["here"], scenes=["there"])


def test_unset_settings_are_the_models_and_null_switches_freeu_off() -> None:
    assert RenderSettings().for_model("acme/xl").freeu == (0.6, 0.4, 1.1, 1.2)
    assert RenderSettings(freeu=None).for_model("acme/xl").freeu is None
    assert RenderSettings(guidance_scale=3).for_model("acme/xl").guidance_scale == 3.0
    assert RenderSettings(seed=9, batch_size=2).for_model("acme/xl") == RenderSettings().for_model("acme/xl")


def test_settings_lie_on_top_of_the_models_own(tmp_path: Any) -> None:
    (tmp_path / "consistory.json").write_text('{"mask_dropout": 0.1, "num_inference_steps": 30}')
    resolved = RenderSettings(num_inference_steps=12).for_model(str(tmp_path))
    assert (resolved.mask_dropout, resolved.num_inference_steps) == (0.1, 12)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": "50"}, "num_inference_steps"),
        ({"num_inference_steps": 50.5}, "num_inference_steps"),
        ({"num_inference_steps": None}, "num_inference_steps"),
        ({"num_inference_steps": 10**400}, "num_inference_steps"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"height": 1001}, "height"),
        ({"width": 0}, "width"),
        ({"width": 65536}, "width"),
        ({"mask_dropout": 1.5}, "mask_dropout"),
        ({"sdsa": "no"}, "sdsa"),
        ({"sdsa": None}, "sdsa"),
        ({"freeu": [1, 2]}, "freeu"),
        ({"freeu": [1, 2, 3, 4, 5]}, "freeu"),
        ({"freeu": [1, 2, 3, float("nan")]}, "freeu[3]"),
        ({"freeu": False}, "freeu"),
        ({"injection_window": [0.5, 0.1]}, "injection_window"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "many"}, "batch_size"),
        ({"png_level": 10}, "png_level"),
        ({"png_level": True}, "png_level"),
        ({"torch_dtype": "fp16"}, "torch_dtype"),
        ({"negative_prompt": 3}, "negative_prompt"),
    ],
)
def test_a_bad_setting_is_named_with_what_to_write(values: dict[str, Any], path: str) -> None:
    assert problems(job(settings=values)) == {f"settings.{path}": FIXES[path.split("[")[0]]}


def test_every_problem_of_a_file_is_told_at_once() -> None:
    found = problems(
        job(
            subject(
                id="moss/dragon", subject="a dragn", scenes=["in space", {"promt": "x"}, {"prompt": "", "count": 0}]
            ),
            17,
            subject(id="cat", concept=[], anchors=[], scenes=[]),
            subject(id="CAT"),
            naem="x",
            settings={"seed": -7},
        )
    )
    assert set(found) == {
        "naem",
        "settings.seed",
        "subjects[0].id",
        "subjects[0].anchors[0]",
        "subjects[0].anchors[1]",
        "subjects[0].scenes[0]",
        "subjects[0].scenes[1].prompt",
        "subjects[0].scenes[1].promt",
        "subjects[0].scenes[2].prompt",
        "subjects[0].scenes[2].count",
        "subjects[1]",
        "subjects[2].concept",
        "subjects[2].anchors",
        "subjects[2].scenes",
        "subjects[3].id",
    }
    assert found["naem"] == 'remove this key, did you mean "name"?'
    assert found["subjects[0].scenes[1].promt"] == 'remove this key, did you mean "prompt"?'
    assert "missing" in found["subjects[0].scenes[1].prompt"]
    assert found["subjects[0].id"].endswith('for example "moss-dragon"')


def test_configurations_are_for_single_files() -> None:
    assert parse_job(job(model="model.safetensors", config="configs/sdxl")).config == "configs/sdxl"
    for model in ("acme/xl", "miniature", "models/xl"):
        assert "leave it out" in problems(job(model=model, config="configs/sdxl"))["config"]
    assert problems(job(model="model.safetensors", config=3))["config"]
    assert problems(job(model="model.safetensors", config=" "))["config"]


def test_a_key_far_from_all_known_ones_lists_them() -> None:
    known = (
        "name, model, config, variant, revision, vae, loras, embeddings, settings, controlnets, guess_mode, "
        "checks, quality, takes, on_missing_concept, dynamic_prompts, wildcards, subjects"
    )
    assert problems(job(zzz=1))["zzz"] == f"remove this key, known are {known}"


@pytest.mark.parametrize(
    "data", [None, 3, "text", [], [{}], {}, {"subjects": {}}, {"subjects": []}, {"subjects": [None]}]
)
def test_something_else_than_a_job_is_refused(data: Any) -> None:
    assert problems(data)


def test_concepts_stand_in_every_anchor_and_one_of_them_in_every_scene() -> None:
    pair = subject(
        concept=["cat", "robot"],
        subject="",
        anchors=["a cat and a robot at home", "a Cat outdoors"],
        scenes=["a cat at night", "the robot's day", "dogs everywhere"],
    )
    found = problems(job(pair))
    assert set(found) == {"subjects[0].anchors[1]", "subjects[0].scenes[2]"}
    assert '"robot"' in found["subjects[0].anchors[1]"]
    assert '"cat" or "robot"' in found["subjects[0].scenes[2]"]


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a cat", "cat", True),
        ("The CAT's hat", "cat", True),
        ("cats", "cat", False),
        ("a concatenation", "cat", False),
        ("a fire  truck", "fire truck", True),
        ("a fire-truck", "fire truck", False),
        ("r2d2 the robot2", "robot", True),
        ("un e\u0301le\u0301phant", "éléphant", True),
        ("a (cat)", "(cat)", True),
        ("a cat", ".*", False),
    ],
)
def test_mentions_means_whole_words(prompt: str, concept: str, expected: bool) -> None:
    assert mentions(prompt, concept) is expected


@pytest.mark.parametrize(
    ("scenes", "places"),
    [
        ([{"id": "a", "prompt": "x"}, {"id": "A", "prompt": "y"}], ["scenes[1].id"]),
        ([{"id": "a", "prompt": "x", "count": 3}, {"id": "A-2", "prompt": "y"}], ["scenes[1].id"]),
        ([{"id": "a-2", "prompt": "x"}, {"id": "a", "prompt": "y", "count": 3}], ["scenes[0].id"]),
        ([{"id": "a", "prompt": "x", "count": 3}, {"id": "a-3", "prompt": "y"}], []),
        ([{"id": "a", "prompt": "x", "count": 3}, {"id": "a-02", "prompt": "y"}], []),
        ([{"id": "anchor-0", "prompt": "x"}], ["scenes[0].id"]),
        ([{"id": "Anchor", "prompt": "x", "count": 2}], ["scenes[0].id"]),
        ([{"prompt": "x", "seed": 1}, {"prompt": " x ", "seed": 1}], ["scenes[1].seed"]),
        ([{"prompt": "x", "seed": 1, "count": 5}, {"prompt": "x", "seed": 5}], ["scenes[1].seed"]),
        ([{"prompt": "x", "seed": 1, "count": 5}, {"prompt": "x", "seed": 6}, {"prompt": "y", "seed": 1}], []),
        ([{"prompt": "x", "seed": MAX_SEED, "count": 2}], ["scenes[0].seed"]),
        ([{"prompt": "x", "seed": MAX_SEED}], []),
    ],
)
def test_scenes_of_a_subject_are_told_apart(scenes: list[Any], places: list[str]) -> None:
    data = job(subject(scenes=scenes))
    if places:
        assert set(problems(data)) == {f"subjects[0].{place}" for place in places}
    else:
        parse_job(data)


def test_a_job_of_too_many_pictures_is_refused_before_any_is_planned() -> None:
    scenes = [{"prompt": f"place {n}", "count": 100_000} for n in range(21)]
    assert problems(job(subject(scenes=scenes))) == {"subjects": "split the job, it may have 2000000 pictures at most"}


def test_text_is_brought_to_one_form() -> None:
    read = parse_job(job(subject(style=" a\tdrawing\n of ", scenes=["in the cafe\u0301"])))
    assert read.subjects[0].style == "a drawing of"
    assert read.subjects[0].scenes[0].prompt == "in the café"


@pytest.mark.parametrize("text", ["a\0b", "a\x1b[2J", "a\ud800b", "a\u202eb", "x" * 5000])
def test_text_that_cannot_be_shown_is_refused(text: str) -> None:
    assert set(problems(job(subject(scenes=[text])))) == {"subjects[0].scenes[0]"}


@pytest.mark.parametrize(
    "value",
    [
        *("", ".", "..", "../x", "a/b", "a\\b", "C:", "con", "NUL.png", "com1", "LPT9.x.y", "a.", "a..b", "-a", " a"),
        *("a b", "\u00e9", "\uff43on", "a\0b", "~", "a:b", "a?", "dragon\n", "drag\u043en", "%2e%2e"),
        "a" * (MAX_ID + 1),
    ],
)
def test_ids_are_file_names_everywhere(value: str) -> None:
    assert id_problem(value)
    assert set(problems(job(subject(id=value)))) == {"subjects[0].id"}
    assert "subjects[0].scenes[0].id" in problems(job(subject(scenes=[{"id": value, "prompt": "x"}])))


@pytest.mark.parametrize("value", ["a", "Moss-Dragon", "2024", "v1.2_final", "console", "nullify", "a" * MAX_ID])
def test_usual_ids_are_fine(value: str) -> None:
    assert id_problem(value) is None
    parse_job(job(subject(id=value)))


@given(st.text(max_size=300))
def test_a_slug_is_a_safe_id_and_always_the_same(text: str) -> None:
    made = slug(text)
    assert id_problem(made) is None
    assert made == made.lower() == slug(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in the forest", "in-the-forest"),
        ("A Dragon!", "dragon"),
        ("café ①", "cafe-1"),
        ("Con", "id-con"),
        ("the", "the"),
        ("in Köln", "in-koln"),
        ("Ko\u0308ln", "koln"),
        ("Jürgen", "jurgen"),
        ("Ångström", "angstrom"),
        ("straße", "strasse"),
        ("Łódź", "lodz"),
        ("İstanbul", "istanbul"),
        ("dog \u263a", "dog"),
        ("東京 tower", "tower-ff93f3b8"),
    ],
)
def test_slugs_read_well(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_long_and_foreign_texts_get_different_slugs() -> None:
    assert slug("word " * 40 + "a") != slug("word " * 40 + "b")
    assert slug("龙") != slug("龍")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in Köln", "in-ko-ln"),
        ("straße", "stra-e"),
        ("東京 tower", "tower"),
        ("A Dragon!", "dragon"),
        ("龙", "id-c10756e3"),
    ],
)
def test_what_seeds_come_from_stays_as_it_is_in_every_version(text: str, expected: str) -> None:
    """Another scope is another individual."""
    assert seed_scope(text) == expected


def names(*wanted: Wanted, taken: tuple[str, ...] = ()) -> list[list[str]]:
    return distinct_names(wanted, taken)


def test_names_differ_even_without_capitals() -> None:
    assert names(Wanted("cat", "a cat"), Wanted("dog", "dog"), taken=("Cat", "dog-1")) == [["cat-51e46741"], ["dog"]]
    assert names(Wanted("cat", "cat"), Wanted("cat", "cat"), Wanted("cat", "cat", 2)) == [
        ["cat"],
        ["cat-2"],
        ["cat-3-0", "cat-3-1"],
    ]


_wanted = st.builds(
    Wanted,
    st.sampled_from(["a", "b", "a-2", "b-0", "a" * 56]),
    st.sampled_from(["v", "w", "x", "y", "z"]),
    st.integers(1, 3),
)


@given(st.lists(_wanted, max_size=8), st.lists(st.sampled_from(["A", "b", "a-2", "b-0-1"])), st.randoms())
def test_names_are_distinct_and_depend_on_no_order(wanted: list[Wanted], taken: list[str], shuffle: Any) -> None:
    made = distinct_names(wanted, taken)
    flat = [name for group in made for name in group]
    assert len({*flat}) == len(flat) == sum(one.count for one in wanted)
    assert {name.lower() for name in taken}.isdisjoint(flat)
    assert all(id_problem(name) is None for name in flat)
    once = list({one.words: one for one in wanted}.values())  # equal words are told apart by their order
    before = dict(zip(once, distinct_names(once, taken), strict=True))
    shuffle.shuffle(once)
    assert dict(zip(once, distinct_names(once, taken), strict=True)) == before


def test_names_that_were_given_to_get_in_the_way_only_make_names_longer() -> None:
    wanted, taken = [Wanted("cat", "a cat"), Wanted("cat", "the cat")], ["cat"]
    for _ in range(5):
        taken += [name for group in distinct_names(wanted, taken) for name in group]
    assert len(set(taken)) == len(taken) == 11


def test_the_schema_for_editors_names_every_key_and_accepts_the_short_forms() -> None:
    schema = RenderJob.model_json_schema()
    text = json.dumps(schema)
    assert set(schema["$defs"]["RenderSettings"]["properties"]) == set(RenderSettings.model_fields)
    assert {"type": "string"} in schema["$defs"]["Subject"]["properties"]["scenes"]["items"]["anyOf"]
    assert text.count('"description"') > 25
    of_subject = {field.alias or name for name, field in Subject.model_fields.items()}
    entries = (Scene, Control, GivenPicture, LoRA, Embedding, Quality)
    of_entries = {name for kind in entries for name in kind.__dataclass_fields__}
    known = {*RenderJob.model_fields, *RenderSettings.model_fields, *of_subject, *of_entries}
    assert known == set(FIXES), "every key has its fix in plain words"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_keys = st.sampled_from([*FIXES, "zzz"])
_odd = st.dictionaries(
    _keys, _json | st.dictionaries(_keys, _json | st.lists(st.dictionaries(_keys, _json)), max_size=4)
)


@settings(deadline=None, max_examples=150)
@given(data=_json | _odd, where=st.sampled_from(["job", "settings", "subject", "scene"]))
def test_any_data_is_a_job_or_a_job_error(data: Any, where: str) -> None:
    whole: Any = {
        "job": data,
        "settings": job(settings=data),
        "subject": job({**subject(), **data} if isinstance(data, dict) else data),
        "scene": job(subject(scenes=[data, "in space"], anchors=[data])),
    }[where]
    try:
        parse_job(whole)
    except JobError as error:
        assert error.problems
        assert all(problem.path and problem.fix and len(str(problem)) < 1000 for problem in error.problems)
