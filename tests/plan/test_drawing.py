"""Dynamic prompts of a job: drawn by the plan, for each picture from its own content alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.concepts.compel_syntax import compel_is_here
from consistory_ray.errors import JobError
from consistory_ray.jobs.job import RenderJob, load_job, parse_job
from consistory_ray.jobs.subject import Subject
from consistory_ray.plan.advice import job_notes
from consistory_ray.plan.drawing import Drawer
from consistory_ray.plan.plan import Plan, make_plan

PLACES = {
    "places": ["in space", "in the snow", "in the {red|blue} city", "by the __waters__"],
    "waters": ["sea", "lake"],
}


def job(*scenes: Any, subjects: tuple[dict[str, Any], ...] = (), **changes: Any) -> RenderJob:
    of_job = {key: changes.pop(key) for key in ("settings", "wildcards", "dynamic_prompts") if key in changes}
    whole = {"dynamic_prompts": True, "wildcards": PLACES, **of_job, "name": "x", "model": "acme/xl"}
    return parse_job({**whole, "subjects": [dragon(*scenes, **changes), *subjects]})


def dragon(*scenes: Any, **changes: Any) -> dict[str, Any]:
    subject = {"id": "moss", "concept": "dragon", "style": "a drawing of", "subject": "a dragon"}
    return {**subject, "anchors": ["at home", "at sea"], "scenes": list(scenes) or ["in space"], **changes}


def made(plan: Plan) -> dict[str, tuple[str, int, str]]:
    """What is made, by its place."""
    return {asset.path: (asset.prompt, asset.seed, asset.asset_id) for asset in plan.assets()}


def problems(*scenes: Any, **changes: Any) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        make_plan(job(*scenes, **changes))
    return {problem.path: f"{problem.value}: {problem.fix}" for problem in caught.value.problems}


WALK = {"id": "walk", "prompt": "__places__ with {a hat|a scarf|a bow}", "count": 20}


def test_each_picture_draws_its_own_words() -> None:
    scenes = make_plan(job(WALK)).subjects[0].scenes
    assert [scene.scene_id for scene in scenes] == [f"walk-{number}" for number in range(20)]
    assert [scene.seed for scene in scenes] == list(range(scenes[0].seed, scenes[0].seed + 20))
    assert len({scene.prompt for scene in scenes}) > 8 and len({scene.asset_id for scene in scenes}) == 20
    assert all(scene.prompt.startswith("a drawing of a dragon ") for scene in scenes)
    assert not any(set("{}|_") & set(scene.prompt) for scene in scenes)


def test_words_stay_as_they_are_in_every_version() -> None:
    """Runs of earlier versions resume: other words are other pictures."""
    scenes = make_plan(job({**WALK, "count": 3}, settings={"seed": 7})).subjects[0].scenes
    assert [(scene.prompt, scene.seed) for scene in scenes] == [
        ("a drawing of a dragon in the snow with a hat", 42412039),
        ("a drawing of a dragon in the snow with a hat", 42412040),
        ("a drawing of a dragon in the snow with a bow", 42412041),
    ]


def test_neighbours_order_and_count_change_nothing() -> None:
    alone = made(make_plan(job(WALK)))
    other = {"prompt": "__places__", "count": 3}
    for scenes in ((other, "in the snow", WALK, {**WALK, "id": "again"}), (WALK, other), ({**WALK, "count": 40},)):
        assert alone.items() <= made(make_plan(job(*scenes))).items()
    assert alone.items() <= made(make_plan(job(WALK, subjects=(dragon(WALK, id="other"),)))).items()
    other_seed = made(make_plan(job(WALK, settings={"seed": 1})))
    assert [one[0] for one in alone.values()] != [one[0] for one in other_seed.values()]


def test_the_same_words_with_a_seed_of_their_own_are_the_same_for_everybody() -> None:
    scene = {**WALK, "seed": 5}
    moss, tin = make_plan(job(scene, subjects=(dragon(scene, id="tin", anchors=["at night", "by day"]),))).subjects
    assert [one.prompt for one in moss.scenes] == [one.prompt for one in tin.scenes]
    twice = make_plan(job({**WALK, "id": "a"}, {**WALK, "id": "b"})).subjects[0].scenes
    assert [one.prompt for one in twice[:20]] != [one.prompt for one in twice[20:]]


def test_without_the_word_braces_are_text_and_ids_stay() -> None:
    plain = make_plan(job("in {a|b}", "in space", dynamic_prompts=False, wildcards={}))
    assert plain.subjects[0].scenes[0].prompt == "a drawing of a dragon in {a|b}"
    drawn = make_plan(job("in {a|b}", "in space"))
    assert drawn.subjects[0].scenes[1] == plain.subjects[0].scenes[1]
    assert drawn.subjects[0].scenes[0].prompt in ("a drawing of a dragon in a", "a drawing of a dragon in b")
    assert drawn.subjects[0].scenes[0].scene_id in ("in-a", "in-b")
    assert drawn.subjects[0].anchors == plain.subjects[0].anchors
    mixed = make_plan(
        job("in {a|b}", dynamic_prompts=True, subjects=(dragon("in {a|b}", id="t", dynamic_prompts=False),))
    )
    assert mixed.subjects[1].scenes[0].prompt.endswith("{a|b}")


def test_a_subject_is_drawn_once_and_its_anchors_each() -> None:
    looks = {
        "style": "a {drawing|photo|cartoon} of",
        "subject": "a {red|green|blue|old} dragon",
        "details": "with {a|no} hat",
    }
    subject = make_plan(job("in space", "at dusk", anchors=["in {a|b|c|d|e|f|g|h|i|j|k}"] * 2, **looks)).subjects[0]
    assert "{" not in subject.style + subject.text + subject.details
    assert all(one.prompt.startswith(f"{subject.style} {subject.text}") for one in subject.assets())
    assert subject.anchors[0].prompt != subject.anchors[1].prompt
    assert [text for text, _ in subject.anchor_prompts] == [one.prompt[-4:] for one in subject.anchors]


def test_all_is_a_scene_for_every_text() -> None:
    scene = {"prompt": "in the {red|blue} __waters__", "expand": "all"}
    every = make_plan(job(scene))
    written = [f"in the {colour} {water}" for colour in ("red", "blue") for water in ("sea", "lake")]
    assert made(every) == made(make_plan(job(*written)))
    named = make_plan(job({**scene, "id": "w", "count": 2, "seed": 3})).subjects[0].scenes
    assert [(one.scene_id, one.seed) for one in named[:4]] == [("w-0-0", 3), ("w-0-1", 4), ("w-1-0", 3), ("w-1-1", 4)]
    more = made(make_plan(job({**scene, "prompt": "in the {old|red|blue} __waters__"})))
    assert made(every).items() <= more.items()


def test_poses_have_the_words_of_their_picture(tmp_path: Path) -> None:
    from PIL import Image

    for name, shade in (("a", 90), ("b", 200)):
        image = Image.new("L", (64, 64))
        image.paste(shade, (16, 16, 48, 48))
        image.save(tmp_path / f"{name}.png")
    data = {"name": "x", "model": "acme/xl", "controlnets": ["miniature"], "dynamic_prompts": True}
    poses = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    plan = make_plan(parse_job({**data, "subjects": [dragon({"prompt": "in {a|b|c|d|e}", "count": 3}, poses=poses)]}))
    scenes = plan.subjects[0].scenes
    assert len(scenes) == 6 and all(scenes[i].prompt == scenes[i + 1].prompt for i in (0, 2, 4))
    (drawn,) = Drawer(job("in {a|b}")).drawn(make_plan(job("in {a|b}")).subjects)
    assert (drawn.variants, drawn.pictures) == (2, 1)


@pytest.mark.parametrize(
    ("scene", "place", "told"),
    [
        ("in {a|b", "subjects[0].scenes[1]", "never closed"),
        ({"prompt": "in a|b}"}, "subjects[0].scenes[1].prompt", "closes nothing"),
        ("__nowhere__", "subjects[0].scenes[1]", "no such wildcard"),
        ("{5$$__waters__}", "subjects[0].scenes[1]", "2 alternatives to take 5"),
        (
            {"prompt": " ".join(["__places__"] * 9), "expand": "all"},
            "subjects[0].scenes[1].expand",
            "10077696 pictures",
        ),
        ("__long__ __long__ __long__", "subjects[0].scenes[1]", "can become 4"),
        ({"prompt": "x", "expand": "every"}, "subjects[0].scenes[1].expand", "all"),
    ],
)
def test_what_cannot_be_drawn_is_told_with_its_place(scene: Any, place: str, told: str) -> None:
    found = problems("in space", scene, wildcards={**PLACES, "long": ["word " * 300]})
    assert list(found) == [place] and told in found[place]


def test_what_becomes_too_much_is_told_before_it_is_made() -> None:
    long = {"prompt": "{a|b} " + "word " * 700, "count": 100_000}
    assert "million characters" in problems(long, long, long, long)["subjects"]
    every = {"prompt": "{2-3$$__n__}", "expand": "all", "count": 9}
    wildcards = {"n": [str(number) for number in range(40)]}
    assert make_plan(job(every, wildcards=wildcards)).scene_count == 9 * (40 * 39 // 2 + 40 * 39 * 38 // 6)
    assert "2398500 pictures" in problems(*[every] * 25, wildcards=wildcards)["subjects"]


def test_lists_are_checked_too() -> None:
    found = problems("__a__", wildcards={"a": ["fine", "{b", "{2$$x}"], "../b": ["x"], "c": ["__c__"]})
    assert "never closed" in found["wildcards.a[1]"]
    assert "below the folder" in found['wildcards["../b"]']
    assert "lead back to itself" in problems("__c__", wildcards={"c": ["x", "__c__"]})["subjects[0].scenes[0]"]
    assert (
        "dynamic_prompts: true"
        in problems({"prompt": "a", "expand": "all"}, dynamic_prompts=False)["subjects[0].scenes[0].expand"]
    )
    assert "folder of lists" in problems("a", wildcards=[3])["wildcards"]


def test_what_was_drawn_has_the_concepts() -> None:
    scenes = ["{a dragon|a cat} at sea", {"prompt": "__cats__", "count": 9}]
    found = problems(
        *scenes, subject="", anchors=["a dragon", "{a hat|a cap}"], wildcards={"cats": ["a cat", "a dragon"]}
    )
    assert 'must contain "dragon"' in found["subjects[0].anchors[1].prompt"]
    assert "a drawing of a cat" in found["subjects[0].scenes[1].prompt"]
    with_skip = make_plan(
        job(*scenes, subject="", wildcards={"cats": ["a cat"]}, anchors=["a dragon"], on_missing_concept="skip")
    )
    assert len(with_skip.subjects[0].impossible) >= 9


def test_pictures_that_would_be_the_same_are_refused() -> None:
    found = problems({"prompt": "in {a|a} hat", "seed": 3}, {"prompt": "in a {hat|hat}", "seed": 3})
    assert "choose another seed" in found["subjects[0].scenes[1].seed"]
    found = problems({"prompt": "{a|b}", "id": "x", "expand": "all"}, {"prompt": "c", "id": "x-1"})
    assert "choose another id" in found["subjects[0].scenes[1].id"]


def test_a_job_of_python_brings_its_lists() -> None:
    subject = Subject(concept=("dragon",), subject="a dragon", anchors=("at home",), scenes=("in {a|a}", "__b__"))
    whole = RenderJob(name="x", model="acme/xl", dynamic_prompts=True, wildcards={"b": ("c",)}, subjects=(subject,))
    assert [one.prompt for one in make_plan(whole).subjects[0].scenes] == ["a dragon in a", "a dragon c"]


def job_file(folder: Path, **changes: Any) -> Path:
    (lists := folder / "wildcards" / "far").mkdir(parents=True)
    (folder / "wildcards" / "places.txt").write_text(
        "# places\n\nin space\n  3::in the {red|blue} city  \n__far/away__\n"
    )
    (lists / "away.txt").write_bytes("﻿à la mer\n".encode())
    (lists / "unused.txt").write_text("{")
    data = {"dynamic_prompts": True, "model": "acme/xl", **changes}
    path = folder / "job.json"
    path.write_text(json.dumps({**data, "subjects": [dragon({"prompt": "__places__", "count": 30})]}))
    return path


def test_lists_lie_beside_the_job_and_the_record_needs_none(tmp_path: Path) -> None:
    path = job_file(tmp_path)
    loaded = load_job(path)
    assert loaded.wildcards == {
        "places": ("in space", "3::in the {red|blue} city", "__far/away__"),
        "far/away": ("à la mer",),
    }
    plan = make_plan(loaded)
    assert {scene.prompt.removeprefix("a drawing of a dragon ") for scene in plan.subjects[0].scenes} == {
        *("in space", "in the red city", "in the blue city", "à la mer")
    }
    record = loaded.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "wildcards" / "places.txt").write_text("somewhere else\n")
    assert make_plan(parse_job(record)).subjects == plan.subjects
    assert make_plan(load_job(path)).subjects != plan.subjects
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "places.txt").write_text("in another folder\n")
    path.write_text(json.dumps({**json.loads(path.read_text()), "wildcards": "elsewhere"}))
    assert {one.prompt[-17:] for one in make_plan(load_job(path)).subjects[0].scenes} == {"in another folder"}


@pytest.mark.parametrize(
    ("name", "content", "place", "told"),
    [
        ("places.txt", None, "subjects[0].scenes[0].prompt", "there is no file"),
        ("far/away.txt", None, "places.txt", "there is no file"),
        ("places.txt", b"\xff\xfe\xff", "subjects[0].scenes[0].prompt", "as UTF-8"),
        ("places.txt", b"a\n\n{b\n", "places.txt, line 3", "never closed"),
        ("places.txt", b"a\nb\x07\n", "places.txt, line 2", "unprintable"),
        ("places.txt", b"# nothing\n", "subjects[0].scenes[0].prompt", "no line"),
        ("far/away.txt", b"__places__", "subjects[0].scenes[0].prompt", "places → far/away → places"),
        ("places.txt", b"a\n" * (5 << 20), "subjects[0].scenes[0].prompt", "8 MiB"),
    ],
)
def test_lists_that_cannot_be_used_are_told(
    tmp_path: Path, name: str, content: bytes | None, place: str, told: str
) -> None:
    path = job_file(tmp_path)
    if content is None:
        (tmp_path / "wildcards" / name).unlink()
    else:
        (tmp_path / "wildcards" / name).write_bytes(content)
    with pytest.raises(JobError) as caught:
        load_job(path)
    first = caught.value.problems[0]
    assert first.path.endswith(place) and told in f"{first.value} {first.fix}"


def test_lists_keep_to_the_places_that_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    path = job_file(tmp_path / "jobs")
    monkeypatch.setenv("CONSISTORY_ALLOWED_URLS", str(tmp_path / "jobs"))
    assert load_job(path).wildcards
    (tmp_path / "secret.txt").write_text("secret\n")
    (tmp_path / "jobs" / "wildcards" / "places.txt").unlink()
    (tmp_path / "jobs" / "wildcards" / "places.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(JobError, match="cannot be rendered") as caught:
        load_job(path)
    assert "CONSISTORY_ALLOWED_URLS" in caught.value.problems[0].fix
    path.write_text(json.dumps({**json.loads(path.read_text()), "wildcards": str(tmp_path)}))
    with pytest.raises(JobError):
        load_job(path)


def test_plan_shows_what_is_drawn(tmp_path: Path) -> None:
    path = job_file(tmp_path)
    for command in ("validate", "plan"):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 0 and "moss: __places__ (4 variants, 30 pictures)" in result.stdout
        assert result.stdout.count("    a drawing of a dragon ") == 3
        (drawn,) = json.loads(CliRunner().invoke(app, [command, str(path), "--json"]).stdout)["drawn"]
        assert (drawn["variants"], drawn["pictures"], len(drawn["examples"])) == (4, 30, 3)


def test_advice_is_about_what_is_drawn() -> None:
    plain = job("in {a|b}", dynamic_prompts=False, wildcards={})
    (warning,) = job_notes(plain, make_plan(plain)).warnings
    assert warning.kind == "prompt-choice" and "dynamic_prompts: true" in warning.message
    drawn = job("in {(a:1.2)|(b:1.3)}", r"\{a|b\}", "[c|d]", {"prompt": "{w|w}" + " word" * 100, "id": "long"})
    found = {one.kind: one for one in job_notes(drawn, make_plan(drawn)).warnings}
    assert found.keys() == {"prompt-weight", "prompt-choice", "cut-prompt"}
    assert found["prompt-choice"].example == '"[c|d]"' and found["cut-prompt"].where == "moss long"
    loose = job("{a dragon|dragons} at sea", subject="", anchors=["a dragon"])
    assert all("{" not in text for one in job_notes(loose, make_plan(loose)).concepts for text in one.matched)


@pytest.mark.skipif(not compel_is_here(), reason="compel is an extra")
def test_draws_come_before_weights() -> None:
    scenes = ["{(red)1.3|(blue)0.5} sky \\(night\\)", "in the snow"]
    plan = make_plan(job(*scenes, subject="a {(dragon)1.2|(dragon)0.9}", settings={"prompt_syntax": "compel"}))
    assert re.fullmatch(
        r"a drawing of a \(dragon\)\S+ \((red|blue)\)\S+ sky \\\(night\\\)", plan.subjects[0].scenes[0].prompt
    )
