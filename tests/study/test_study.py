"""Pages that do not tell which run is which, and answers that are read for what they are."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.errors import InputError
from consistory_ray.evaluation.bootstrap import crossed_weights
from consistory_ray.output.storage import open_output
from consistory_ray.study.answers import Answer, KeyQuestion, read_answers, read_key
from consistory_ray.study.page import write_page
from consistory_ray.study.questions import SET_SIZE, make_study
from consistory_ray.study.runs import Picture, Run, read_runs
from consistory_ray.study.strengths import preferences

Output = Callable[..., str]
AnswerAs = Callable[..., Path]


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def made_up(names: str, subjects: dict[str, int]) -> list[Run]:
    """Runs without files."""
    return [
        Run(
            name,
            open_output("memory://none"),
            {
                (subject, f"scene-{scene}", "a cat"): Picture(f"{subject}/{scene}.png", f"{name}{subject}{scene}")
                for subject, scenes in subjects.items()
                for scene in range(scenes)
            },
        )
        for name in names
    ]


@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    scenes=st.lists(st.integers(2, 8), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    most=st.integers(12, 80),
)
def test_questions_are_fair(names: str, scenes: list[int], seed: int, most: int) -> None:
    runs = made_up(names, {f"cat-{number}": count for number, count in enumerate(scenes)})
    study = make_study(runs, seed=seed, most=most)
    assert study == make_study(runs, seed=seed, most=most)
    pairs = len(list(combinations(names, 2)))
    assert len(study.questions) <= most and len({one.id for one in study.questions}) == len(study.questions)
    assert len(study.questions) == min(2 * pairs * len(scenes), most), "nothing is left out without need"
    asked = Counter((one.asks, frozenset((one.left, one.right))) for one in study.questions)
    assert max(asked.values()) - min(asked.values()) <= 1 and len(asked) == 2 * pairs
    for group, count in asked.items():
        first = min(group[1])
        lefts = sum(one.left == first for one in study.questions if (one.asks, {one.left, one.right}) == group)
        assert abs(2 * lefts - count) <= 1, "either run is on the left as often"
    for one in study.questions:
        assert len(one.left_pictures) == len(one.right_pictures) == len(one.prompts)
        assert len(one.prompts) == (1 if one.asks == "prompt" else min(SET_SIZE, scenes[int(one.subject[4:])]))
        assert [p.path for p in one.left_pictures] == [p.path for p in one.right_pictures], "the same scenes"
        assert {p.sha256[0] for p in one.left_pictures} == {one.left}


def test_the_seed_decides_order_and_sides() -> None:
    runs = made_up("ab", {f"cat-{number}": 3 for number in range(12)})
    orders = {tuple((q.subject, q.asks, q.left) for q in make_study(runs, seed=seed).questions) for seed in range(5)}
    assert len(orders) == 5


def test_a_page_tells_nothing(output: Output, tmp_path: Path) -> None:
    runs = read_runs([output("consistory"), output("vanilla")])
    study = make_study(runs)
    page = write_page(study, runs, tmp_path / "study")
    files = [path for path in page.parent.rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 * 12, "the page, and each scene once; anchors are not shown"
    for path in files:
        content = path.read_bytes().lower()
        for word in (b"vanilla", b'consistory"', b"cat-", b"images/"):
            assert word not in content and word.decode() not in path.name
    stripped = re.sub(r"consistory-study-", "", page.read_text())
    assert "consistory" not in stripped.lower()
    for path in page.parent.glob("pictures/*"):
        with Image.open(path) as image:
            assert image.size == (32, 24) and not image.info.keys() & {"exif", "xmp", "icc_profile", "parameters"}
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[0])
    for one, question in zip(shown["questions"], study.questions, strict=True):
        assert set(one) == {"id", "asks", "prompts", "left", "right"}
        colour = Image.open(io.BytesIO((page.parent / one["left"][0]).read_bytes())).convert("RGB").getpixel((5, 5))
        assert isinstance(colour, tuple)
        assert abs(colour[2] - sum(question.left.encode()) % 256) <= 12, "the picture of the run that the key names"


def test_only_what_all_runs_have_is_asked(output: Output) -> None:
    runs = read_runs([output("a", scenes=4), output("b", scenes=2)])
    assert {prompt for q in make_study(runs).questions for prompt in q.prompts} <= {
        "a cat at place 0",
        "a cat at place 1",
    }
    with pytest.raises(InputError, match="no scene in common"):
        make_study(read_runs([output("c"), output("d", prompt="another")]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "2 to 8 outputs"),
        (["--name", "one"], "one for each of the 2 outputs"),
        (["--name", "one", "--name", "one"], "a name of its own"),
        (["--ask", "beauty"], "consistency or prompt"),
        (["--questions", "1"], "at least 2 questions"),
        (["--to", "s3://bucket/page"], "a folder of this machine"),
        (["--to", "."], "a new or an empty folder"),
    ],
)
def test_refusals_of_a_study(output: Output, tmp_path: Path, words: list[str], told: str) -> None:
    urls = [output("a")] + ([output("b")] if words else [])
    result = call("study", *urls, "--to", tmp_path / "study", *words)
    assert result.exit_code == 2 and told in " ".join(result.stderr.split())
    assert not (tmp_path / "study").exists()


def test_from_runs_to_strengths(output: Output, answer_as: AnswerAs, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    made = call("study", output("ours"), output("theirs"), "--to", folder, "--seed", 3, "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["questions"] == {"consistency": 3, "prompt": 3}
    key = read_key(folder)
    files = [
        answer_as(key, f"p{number}", lambda one: "ours" if one.asks == "consistency" else None) for number in range(4)
    ]
    found = json.loads(call("preferences", folder, *files, "--json").stdout)["found"]
    sets, single = found
    assert (sets["asks"], sets["people"], sets["answers"], sets["ties"]) == ("consistency", 4, 12, 0)
    assert sets["strengths"]["ours"][0] == pytest.approx(math.log(12.5 / 0.5) / 2, abs=1e-3)
    assert sets["preferred"][0]["run"] == "ours" and sets["preferred"][0]["probability"][1] > 0.9
    assert (single["ties"], single["left_share"]) == (12, None)
    assert single["strengths"]["ours"] == pytest.approx([0, 0, 0], abs=1e-6)
    told = call("preferences", folder, *files).stdout
    assert "ours is preferred to theirs with probability 96 %" in " ".join(told.split())


def test_files_that_are_no_answers_are_refused_all_at_once(output: Output, answer_as: AnswerAs, tmp_path: Path) -> None:
    call("study", output("a"), output("b"), "--to", tmp_path / "one")
    call("study", output("a"), output("b"), "--to", tmp_path / "two", "--seed", 9)
    key = read_key(tmp_path / "one")
    good = answer_as(key, "ada", lambda one: "a")
    again, other = tmp_path / "again.json", answer_as(read_key(tmp_path / "two"), "bob", lambda one: "a")
    again.write_text(good.read_text())
    strange, broken, wrong = (tmp_path / f"{name}.json" for name in ("strange", "broken", "wrong"))
    changed = json.loads(good.read_text()) | {"person": "eve"}
    changed["answers"] = [*changed["answers"], changed["answers"][0], {"question": "x", "choice": "tie", "seconds": 1}]
    strange.write_text(json.dumps(changed))
    broken.write_text("[1, ")
    wrong.write_text(good.read_text().replace('"left"', '"up"').replace("ada", "kim"))
    with pytest.raises(InputError) as caught:
        read_answers([good, again, other, strange, broken, wrong, tmp_path / "none.json"], key)
    fixes = [(Path(one.path).stem, one.fix) for one in caught.value.problems]
    assert [name for name, _ in fixes] == ["again", "answers-bob", "strange", "strange", "broken", "wrong", "none"]
    assert "given already" in fixes[0][1] and "another page" in fixes[1][1] and "no such question" in fixes[2][1]
    assert [answer.person for answer in read_answers([good], key)] == ["ada"] * len(key.questions)


def test_a_key_that_was_changed_is_refused(output: Output, tmp_path: Path) -> None:
    call("study", output("a"), output("b"), "--to", tmp_path / "study")
    path = tmp_path / "study" / "key.json"
    path.write_text(path.read_text().replace('"left": "a"', '"left": "z"'))
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_key(tmp_path / "study")
    assert "not about two of the runs" in caught.value.problems[0].value


def answers_of(truth: dict[str, float], people: int, questions: int, seed: int) -> list[Answer]:
    """What people answer whose preferences follow the model."""
    rng, pairs = random.Random(seed), list(combinations(truth, 2))
    asked = [
        KeyQuestion(
            id=f"q{n}",
            asks="prompt",
            subject="s",
            prompts=("p",),
            left=pairs[n % len(pairs)][n % 2],
            right=pairs[n % len(pairs)][1 - n % 2],
        )
        for n in range(questions)
    ]
    found = []
    for person in range(people):
        for one in asked:
            chance = 1 / (1 + math.exp(truth[one.right] - truth[one.left]))
            found.append(Answer(f"p{person}", one, "left" if rng.random() < chance else "right", 1.0))
    return found


def test_strengths_are_found_and_their_intervals_hold_them() -> None:
    truth = {"a": 1.0, "b": 0.0, "c": -1.0}
    (found,) = preferences(answers_of(truth, 30, 30, 1), [*truth], 300)
    assert list(found.strengths) == ["a", "b", "c"]
    for name, (value, low, high) in found.strengths.items():
        assert low < truth[name] < high and abs(value - truth[name]) < 0.3 and high - low < 1
    assert found.preferred["a", "c"][0] == pytest.approx(1 / (1 + math.exp(-2)), abs=0.06)
    (few,) = preferences(answers_of(truth, 3, 9, 1), [*truth], 300)
    assert few.strengths["a"][2] - few.strengths["a"][1] > found.strengths["a"][2] - found.strengths["a"][1]


def test_one_person_who_answers_everything_is_no_crowd() -> None:
    """Twenty people of one mind, or one person: the intervals of the first are not those of twenty answers' worth."""
    truth = {"a": 0.7, "b": -0.7}
    (alone,) = preferences(answers_of(truth, 1, 20, 4), [*truth], 300)
    assert alone.people == 1 and alone.strengths["a"][1] < alone.strengths["a"][0] < alone.strengths["a"][2]


def test_crossed_weights_draw_people_and_questions() -> None:
    people, questions = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)
    weights = crossed_weights(people, questions, 400)
    assert weights.mean() == pytest.approx(1, abs=0.1)
    grid = weights.reshape(400, 5, 4)
    assert (grid * grid[:, :1, :1] == grid[:, :, :1] * grid[:, :1, :]).all(), "a product of both"
    assert (crossed_weights(np.zeros(6, int), np.zeros(6, int), 10) == 1).all()
