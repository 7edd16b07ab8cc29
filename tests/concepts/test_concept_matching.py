"""Where a concept stands in a prompt: exactly, loosely, in part, or not at all."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.concepts.matching import find_concept, find_concepts, mentions
from consistory_ray.concepts.word_forms import surfaces
from consistory_ray.errors import JobError
from consistory_ray.jobs.job import RenderJob, load_job, parse_job
from consistory_ray.plan.plan import make_plan


def words(prompt: str, concept: str) -> list[list[str]] | None:
    """The words that a concept was matched by, place by place."""
    match = find_concept(prompt, concept)
    return None if match is None else [[prompt[start:end] for start, end in place] for place in match.places]


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a cat and a CAT", "cat", [["cat"], ["CAT"]]),
        ("1girl, hatsune miku (vocaloid), in the forest", "hatsune miku (vocaloid)", [["hatsune miku (vocaloid)"]]),
        ("dog..., running", "dog...", [["dog..."]]),
        ("🐉🐲 in space", "🐉", [["🐉"]]),
        ("my_red_panda", "panda", [["panda"]]),
        ("the cat's hat", "cat", [["cat"]]),
        ("un e\u0301le\u0301phant", "éléphant", [["e\u0301le\u0301phant"]]),
        ("İstanbul, a cat", "cat", [["cat"]]),
        ("ΟΔΟΣ", "οδος", [["ΟΔΟΣ"]]),
        ("一条龙在森林里", "龙", [["龙"]]),
        ("고양이가 있다", "고양이", [["고양이"]]),
        ("a fire  truck", "fire truck", [["fire  truck"]]),
        ("ha ha ha", "ha ha", [["ha ha"], ["ha ha"]]),
    ],
)
def test_exact_matches(prompt: str, concept: str, expected: list[list[str]]) -> None:
    assert words(prompt, concept) == expected
    assert mentions(prompt, concept)
    match = find_concept(prompt, concept)
    assert match is not None and match.exact


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("A crusty loaf of freshly baked bread", "loaf of bread", [["loaf", "bread"]]),
        ("delicate macarons", "macaron", [["macarons"]]),
        ("Mist from a waterfall", "waterfall mist", [["Mist", "waterfall"]]),
        ("bread on a table, a loaf of old bread", "loaf of bread", [["loaf", "bread"]]),
        ("Foxes, red; a red, sly fox", "red fox", [["Foxes", "red"]]),
        ("red foxes and red, tired foxes", "red fox", [["red", "foxes"]]),
        ("two fire-trucks", "fire truck", [["fire", "trucks"]]),
        ("a firetruck", "fire truck", [["firetruck"]]),
        ("a fire truck", "firetruck", [["fire truck"]]),
        ("a red_panda", "red panda", [["red", "panda"]]),
        ("hatsune miku \\(vocaloid\\)", "hatsune miku (vocaloid)", [["hatsune", "miku", "vocaloid"]]),
        ("the baker’s cat", "baker's cat", [["baker", "cat"]]),
        ("the bakers' cat", "baker's cat", [["bakers", "cat"]]),
        ("a cafe", "café", [["cafe"]]),
        ("ﬁsh", "fish", [["ﬁsh"]]),
    ],
)
def test_loose_matches(prompt: str, concept: str, expected: list[list[str]]) -> None:
    assert words(prompt, concept) == expected
    assert not mentions(prompt, concept)
    match = find_concept(prompt, concept)
    assert match is not None and not match.exact and not match.lacking


@pytest.mark.parametrize(
    ("one", "many"),
    [
        *(("cat", "cats"), ("bus", "buses"), ("box", "boxes"), ("church", "churches"), ("lady", "ladies")),
        *(("toy", "toys"), ("hero", "heroes"), ("piano", "pianos"), ("wolf", "wolves"), ("knife", "knives")),
        *(("child", "children"), ("grandchild", "grandchildren"), ("mouse", "mice"), ("goose", "geese")),
        *(("fireman", "firemen"), ("woman", "women"), ("person", "people"), ("ox", "oxen"), ("tooth", "teeth")),
        *(("quiz", "quizzes"), ("zombie", "zombies"), ("dress", "dresses"), ("potato", "potatoes")),
        *(("cactus", "cacti"), ("oasis", "oases"), ("axe", "axes"), ("loaf", "loaves"), ("leaf", "leaves")),
        *(("octopus", "octopuses"), ("bee", "bees"), ("chateau", "chateaux"), ("roof", "roofs"), ("fox", "foxes")),
    ],
)
def test_singular_and_plural_stand_for_each_other(one: str, many: str) -> None:
    assert words(f"two {many} here", one) == [[many]]
    assert words(f"one {one} here", many) == [[one]]


@pytest.mark.parametrize(
    ("prompt", "concept"),
    [
        *(("a concatenation", "cat"), ("a scatter", "cat"), ("catfish", "cat"), ("a dog", "cat"), ("glas", "glass")),
        *(("a princess", "prince"), ("an asset", "ass"), ("boss", "bo")),
        *(("a cat", ".*"), ("a cat", "🐉"), ("a cat", ""), ("", "cat"), ("of the of", "loaf of bread")),
    ],
)
def test_other_words_are_no_match(prompt: str, concept: str) -> None:
    assert find_concept(prompt, concept) is None


def test_some_of_the_words_are_told_as_such() -> None:
    match = find_concept("a red car", "red panda")
    assert match is not None and match.lacking == ("panda",) and match.shown("a red car") == "red"
    assert find_concept("a red car", "red panda", partly=False) is None
    assert find_concept("a pot of gold", "loaf of bread") is None, "stop words are no reason"


def test_exact_matches_win() -> None:
    assert words("cats and a cat", "cat") == [["cat"]]
    assert words("fire of a truck, and a fire truck", "fire truck") == [["fire truck"]]


def test_what_one_concept_has_is_no_part_of_another() -> None:
    prompt, pair = "a red panda on a wall", ["red panda", "red fox"]
    assert [match is not None for match in find_concepts(prompt, pair, every=True)] == [True, False]
    assert [match is not None for match in find_concepts("a red panda, a fox", pair, every=True)] == [True, True]
    assert [match is not None for match in find_concepts("a red panda, a hat", pair)] == [True, False]
    loose = find_concepts("a cat and dogs", ["cat", "dog"])
    assert [match is not None for match in loose] == [True, True]
    assert [match is not None for match in find_concepts("a cat and dogs", ["cat", "dog"], exact_suffices=True)] == [
        True,
        False,
    ]


def test_normal_forms_are_one() -> None:
    for concept in ("éléphant rosé", "Ångström", "Jürgen"):
        for form in ("NFC", "NFD"):
            prompt = "x " + unicodedata.normalize(form, concept.upper()) + " y"
            assert words(prompt, concept) == [[prompt[2:-2]]]


def test_forms_are_few() -> None:
    assert surfaces("é") == {"é"} and surfaces("r2") == {"r2"}
    assert max(len(surfaces(word)) for word in ("hooves", "boxes", "quizzes", "axes", "ladies", "mouse")) < 12


PLUS = """
name: plus
model: acme/xl
food:
  - subject: "A crusty loaf of freshly baked bread"
    concept_token: loaf of bread
    style: "a photo of"
    settings: ["on a table", "in a basket", "in a shop", "in the rain"]
  - subject: "delicate macarons"
    concept_token: macaron
    style: ""
    settings: ["on a table", "in a basket", "in a shop"]
places:
  - subject: "Mist from a waterfall"
    concept_token: waterfall mist
    settings: ["at noon", "at night", "in winter"]
"""


def test_the_benchmarks_three_concepts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plus.yaml"
    path.write_text(PLUS)
    assert make_plan(load_job(path)).scene_count == 4


def job(**changes: Any) -> dict[str, Any]:
    subject = {"concept": "cat", "anchors": ["a cat", "a cat here"], "scenes": ["a cat there", "a dog", "a cat"]}
    return {"name": "x", "model": "acme/xl", "subjects": [{**subject, **changes}]}


def test_a_missing_concept_is_refused_unless_the_job_accepts_it() -> None:
    with pytest.raises(JobError) as caught:
        parse_job(job())
    assert [problem.path for problem in caught.value.problems] == ["subjects[0].scenes[1]"]
    assert "on_missing_concept" in str(caught.value)
    for data in (job(on_missing_concept="skip"), {**job(), "on_missing_concept": "skip"}):
        parsed = parse_job(data)
        plan = make_plan(parsed)
        assert [asset_id for asset_id, _ in plan.subjects[0].impossible] == [plan.subjects[0].scenes[1].asset_id]
        assert parse_job(parsed.model_dump(mode="json", exclude_unset=True)) == parsed
    with pytest.raises(JobError, match="skip"):
        parse_job({**job(on_missing_concept="fail"), "on_missing_concept": "skip"})
    with pytest.raises(JobError, match='write "fail"'):
        parse_job(job(on_missing_concept="maybe"))


def test_an_anchor_without_its_concept_takes_the_subject_with_it() -> None:
    plan = make_plan(parse_job(job(anchors=["a cat", "a hat"], on_missing_concept="skip")))
    impossible = dict(plan.subjects[0].impossible)
    assert set(impossible) == {asset.asset_id for asset in plan.assets()}
    assert set(impossible.values()) == {'the prompt of anchor-1 contains nothing of "cat": "a hat"'}


def test_accepting_it_changes_no_id() -> None:
    fine = job(scenes=["a cat there"])
    plans = [make_plan(RenderJob.model_validate({**fine, **more})) for more in ({}, {"on_missing_concept": "skip"})]
    assert list(plans[0].assets()) == list(plans[1].assets()) and not plans[1].subjects[0].impossible


def test_matching_is_quick() -> None:
    scenes = [
        f"a red panda number {number} walks through a street of the old town at night" for number in range(20_000)
    ]
    began = time.process_time()
    parse_job(job(concept="red panda", anchors=["a red panda"], scenes=scenes))
    exact = time.process_time() - began
    began = time.process_time()
    parse_job(job(concept="pandas of red colour", anchors=["a red panda"], scenes=scenes))
    assert exact < 2 and time.process_time() - began < 2


@pytest.mark.parametrize(
    ("prompt", "concept"),
    [
        ("a b " * 1000, "b a"),
        ("a " * 2000, "a a a a"),
        ("fire" * 1000, "fire truck"),
        ("é " * 2000, "é b"),
        ("x", "y " * 2000),
    ],
)
def test_no_text_takes_long(prompt: str, concept: str) -> None:
    began = time.process_time()
    find_concepts(prompt, [concept], every=True)
    assert time.process_time() - began < 0.5
