"""Individuals with given pictures: what is said of them and what is drawn agree, and nobody is in two sets."""

from __future__ import annotations

import numpy as np
import pytest

from consistory_ray.evaluation.measures import overlap
from consistory_ray.miniature.judge import Judge
from consistory_ray.miniature.vocabulary import ACCESSORIES, COLOURS, KINDS, PATTERNS
from training.characters import draw_characters

REPORTED = 32


def test_those_reported_are_none_of_those_that_settings_are_chosen_with() -> None:
    reported, tuning = draw_characters(REPORTED), draw_characters(REPORTED, purpose="tuning")
    assert [character.who.kind for character in reported] == 4 * list(KINDS)
    assert len({character.who for character in reported}) == REPORTED
    assert not {character.who for character in reported} & {character.who for character in tuning}


def test_more_of_anything_leaves_the_rest_as_it_is() -> None:
    few, many = draw_characters(2, pictures=1, scenes=3), draw_characters(3, pictures=4, scenes=6)
    for less, more in zip(few, many, strict=False):
        assert (less.who, less.stranger) == (more.who, more.stranger)
        assert (less.places, less.scenes) == (more.places[:1], more.scenes[:3])
        assert less.pictures[0].tobytes() == more.pictures[0].tobytes()
        assert less.subject.seeds == more.subject.seeds[:3]


def test_prompts_name_the_look_only_where_they_should() -> None:
    looks = {*COLOURS, *PATTERNS, *ACCESSORIES}
    for character in draw_characters(REPORTED):
        plain, detailed, who = character.subject, character.naming("pattern", "accessory"), character.who
        assert not set(plain.scenes) & set(character.places), "a scene is that of a given picture"
        for text in (*plain.anchors, *plain.prompts, *detailed.anchors):
            assert who.kind in text.split() and not looks & set(text.split())
        expected = {who.pattern, who.accessory} - {"plain", "none"}
        for text, scene in zip(detailed.prompts, detailed.scenes, strict=True):
            assert looks & set(text.split()) == expected and text.endswith(scene)
        assert (detailed.seeds, detailed.anchors) == (plain.seeds, plain.anchors)


def test_words_for_a_look_are_those_of_captions() -> None:
    everything = ("body", "pattern", "accessory", "accessory_colour")
    called = [character.called(*everything) for character in draw_characters(8, purpose="tuning")]
    assert called[4:6] == ["a yellow spotted ghost with a purple hat", "a teal penguin with teal glasses"]
    ghost = draw_characters(5, purpose="tuning")[4]
    assert ghost.called() == "a ghost"
    assert ghost.called("pattern", "accessory") == "a spotted ghost with a hat"
    assert ghost.called("accessory_colour") == "a ghost", "the colour of what is not named"


@pytest.mark.parametrize("index", range(4))
def test_the_judge_reads_what_is_true(index: int) -> None:
    character, judge = draw_characters(4)[index], Judge.load()
    readings = judge.read(character.pictures)
    masks = [reading.foreground for reading in readings]
    portraits = judge.portray(character.pictures, masks)
    assert [reading.scene for reading in readings] == list(character.places)
    assert min(overlap(seen, true) for seen, true in zip(masks, character.masks, strict=True)) > 0.9
    for portrait in portraits:
        wrong = [name for name, value in character.truth.items() if portrait.attributes[name] != value]
        assert len(wrong) <= 1, wrong
    assert float(np.dot(portraits[0].embedding, portraits[1].embedding)) > 0.9
