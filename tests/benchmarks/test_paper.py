"""The paper's figures: what they are drawn from, and the ConsiStory+ layout from end to end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.consistory_plus import run_through
from benchmarks.paper.plus_file import (
    FEWEST,
    MOST,
    PROMPTS,
    SLICE,
    SUBJECTS,
    known_slice,
    plus_document,
    with_found_tokens,
)
from consistory_ray.errors import InputError
from consistory_ray.jobs.job import load_job
from consistory_ray.miniature.vocabulary import words
from consistory_ray.plan.plan import make_plan


@given(st.integers(0, 50))
def test_our_file_has_the_size_and_the_oddities_of_the_published_one(seed: int) -> None:
    document = plus_document(seed)
    assert document == plus_document(seed)
    items = [one for category in document.values() for one in category]
    assert (len(items), sum(len(one["settings"]) for one in items)) == (SUBJECTS, PROMPTS) == (192, 1100)
    for one in items:
        assert set(one) == {"concept_token", "settings", "style", "subject"}
        assert FEWEST <= len(one["settings"]) <= MOST and len(set(one["settings"])) == len(one["settings"])
    assert max(Counter(map(str, items)).values()) == 2, "one subject occurs twice with the very same words"
    assert {"", "A photo of"} < {one["style"] for one in items}
    assert any(" " in one["concept_token"] for one in items)


def test_concepts_that_the_words_lack_are_told_and_can_be_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "plus.yaml"
    path.write_text(yaml.safe_dump(plus_document()))
    with pytest.raises(InputError) as caught:
        make_plan(load_job(str(path)))
    assert {"pot of soup", "harbour fog"} == {
        name for name in ("pot of soup", "harbour fog", "dumpling") if name in str(caught.value.problems)
    }
    mended, changed = with_found_tokens(plus_document())
    assert changed == ["pot of soup", "harbour fog"]
    path.write_text(yaml.safe_dump(mended))
    plan = make_plan(load_job(str(path)))
    assert (len(plan.subjects), plan.anchor_count + plan.scene_count) == (SUBJECTS, PROMPTS)
    assert len({asset.path for asset in plan.assets()}) == PROMPTS


def test_the_slice_is_what_the_bundled_model_knows() -> None:
    slice_ = known_slice(plus_document())
    assert list(slice_) == ["miniature"] and len(slice_["miniature"]) == SLICE
    said = {word for one in slice_["miniature"] for text in (one["subject"], *one["settings"]) for word in text.split()}
    assert said <= set(words())


@pytest.mark.usefixtures("ray_cluster")
def test_every_prompt_of_the_file_is_rendered(tmp_path: Path) -> None:
    mended, _ = with_found_tokens(plus_document())
    found = run_through(mended, tmp_path)
    assert found == {"subjects": SUBJECTS, "prompts": PROMPTS, "pictures": PROMPTS, "files": PROMPTS}
