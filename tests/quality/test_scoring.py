"""All scores of a subject by hand-computed numbers, pictures that fail alone, and what copied backgrounds are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consistory_ray.pictures import decode_mask, encode_mask
from consistory_ray.quality.copies import BACKGROUND, COPIED, CopyFinder
from consistory_ray.quality.layout import LAYOUT, displacements, patch_displacements
from consistory_ray.quality.scores import Score, newest_scores, scores_to_table, table_to_scores
from consistory_ray.quality.scoring import Picture, SubjectPictures, context_of, facts_of, score_subject
from consistory_ray.quality.summary import Number, harmonic

VECTORS = {"a0": (1, 0), "a1": (0, 1), "s0": (1, 0), "s1": (0.6, 0.8), "s2": (0, 1)}
CODES = {asset_id: number for number, asset_id in enumerate(VECTORS)}


class Plain:
    """Knows each picture by its first pixel."""

    name, version, finds_subject = "plain", "7", True

    def __init__(self, bad: str = "") -> None:
        self.bad = bad

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        names = [list(VECTORS)[image.getpixel((0, 0))[0]] for image in images]
        if self.bad in names:
            raise RuntimeError("cannot look at it")
        return np.array([VECTORS[name] for name in names], np.float32)

    def align(self, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        return np.array([float("nan") if text == "no words" else len(text) / 10 for text in texts], np.float32)


def picture(asset_id: str, prompt: str = "four", mask: np.ndarray | None = None) -> Picture:
    kind = "anchor" if asset_id.startswith("a") else "scene"
    return Picture(
        asset_id, kind, prompt, f"{asset_id}.png", asset_id * 32, None if mask is None else encode_mask(mask)
    )


def load(one: Picture) -> Image.Image:
    if one.prompt == "gone":
        raise OSError("not there")
    return Image.new("RGB", (8, 8), (CODES[one.asset_id], 0, 0))


def values(scores: Sequence[Score], metric: str) -> dict[str, float | None]:
    return {score.asset_id: score.value for score in scores if score.metric == metric}


def test_scores_are_the_cosines_that_one_computes_by_hand() -> None:
    subject = SubjectPictures("dragon", tuple(picture(name) for name in VECTORS))
    scored = score_subject(subject, [Plain()], load)
    assert not scored.failures
    identity = values(scored.scores, "plain_identity")
    assert identity == pytest.approx({"a0": 0, "a1": 0, "s0": 0.5, "s1": 0.7, "s2": 0.5})
    among = values(scored.scores, "plain_among")
    assert among.pop("a0") is None and among.pop("a1") is None, "anchors are no scenes"
    assert among == pytest.approx({"s0": 0.3, "s1": 0.7, "s2": 0.4})
    assert values(scored.scores, "plain_alignment") == pytest.approx(dict.fromkeys(VECTORS, 0.4))
    assert set(values(scored.scores, LAYOUT).values()) == {None}, "nobody knows where the subject is"
    assert {score.context for score in scored.scores} == {context_of(subject)}
    assert facts_of(Plain()).scores == ("plain_identity", "plain_among", "plain_alignment")


def test_a_picture_that_fails_fails_alone() -> None:
    subject = SubjectPictures("dragon", (*(picture(name) for name in ("a0", "s0", "s1")), picture("s2", "gone")))
    scored = score_subject(subject, [Plain(bad="s1")], load)
    assert scored.failures == {"s2": "OSError: not there", "s1": "plain: RuntimeError: cannot look at it"}
    assert {score.asset_id for score in scored.scores} == {"a0", "s0"}
    assert values(scored.scores, "plain_identity") == {"a0": None, "s0": 1.0}
    everything = score_subject(
        SubjectPictures("dragon", (picture("a0", "gone"), picture("s0", "gone"))), [Plain()], load
    )
    assert len(everything.failures) == 2 and not everything.scores


def test_a_metric_may_have_no_opinion() -> None:
    scored = score_subject(SubjectPictures("x", (picture("s0", "no words"), picture("s1"))), [Plain()], load)
    assert values(scored.scores, "plain_alignment") == {"s0": None, "s1": pytest.approx(0.4)}


def test_any_change_of_a_subject_changes_its_context() -> None:
    whole = SubjectPictures("x", (picture("a0"), picture("s0")))
    assert context_of(whole) == context_of(SubjectPictures("x", whole.pictures[::-1])), "order says nothing"
    others = [
        SubjectPictures("x", whole.pictures[:1]),
        SubjectPictures("x", (picture("a0"), picture("s0", "other words"))),
        SubjectPictures("x", (picture("a0"), picture("s0", mask=np.eye(2, dtype=bool)))),
    ]
    assert len({context_of(one) for one in (whole, *others)}) == 4


def test_layouts_differ_by_the_way_of_their_centres() -> None:
    left, right = np.array([[True, False]]), np.array([[False, True]])
    way = 0.5 / np.sqrt(2)
    assert displacements([left, right, None, left], [1, 2, 3]) == [None, pytest.approx(way), None, pytest.approx(way)]
    assert displacements([left, right], [0]) == [None, None]
    eye = np.eye(4, dtype=np.float32).reshape(2, 2, 4)
    moved = patch_displacements(
        [eye, eye[:, ::-1], None], [np.array([[True, False], [False, False]]), None, None], [0, 1]
    )
    to_one_point = (0 + 0.5 + 0.5 + np.sqrt(0.5)) / 4 / np.sqrt(2)  # the other's subject is a single patch
    assert moved == [pytest.approx(way), pytest.approx(to_one_point), None]
    assert patch_displacements([eye, eye], [None, None], [0, 1]) == [0.0, 0.0]


def test_a_copied_background_is_told_whatever_stands_before_it() -> None:
    rng = np.random.default_rng(3)
    grounds = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((64, 64)) for _ in range(2)]
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True

    def with_subject(ground: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
        image = ground.copy()
        image.paste(colour, (16, 16, 48, 48))
        return image

    shown = {"a0": (0, (250, 0, 0)), "s0": (0, (0, 0, 250)), "s1": (1, (250, 0, 0)), "s2": (1, (9, 9, 9))}
    prompts = {"a0": "in the forest", "s0": "in space", "s1": "on the beach", "s2": "on the beach"}
    subject = SubjectPictures("x", tuple(picture(name, prompts[name], mask) for name in shown))
    scored = score_subject(
        subject, [], lambda one: with_subject(grounds[shown[one.asset_id][0]], shown[one.asset_id][1]), CopyFinder()
    )
    found = {score.asset_id: (score.value, score.other) for score in scored.scores if score.metric == BACKGROUND}
    assert found["a0"] == (0, "s0") and found["s0"] == (0, "a0")
    assert all((found[name][0] or 0) > COPIED for name in ("s1", "s2")), "those two were asked to be in one place"


def test_one_colour_is_no_background_to_be_copied() -> None:
    finder = CopyFinder()
    assert finder.mark(Image.new("RGB", (16, 16), (9, 9, 9)), None) is None
    assert finder.nearest([picture("a0")], [np.ones(64, bool)]) == [(None, None)]


def test_two_pictures_are_enough_to_be_copies() -> None:
    marks = [np.ones(64, bool), np.arange(64) > 2]
    assert CopyFinder().nearest([picture("a0", "in the forest"), picture("s0", "in space")], marks) == [
        (3, "s0"),
        (3, "a0"),
    ]


def test_s_h_is_the_harmonic_mean() -> None:
    assert harmonic(0.8, 0.4) == pytest.approx(2 * 0.8 * 0.4 / 1.2) == pytest.approx(0.5333, abs=1e-4)
    assert harmonic(1.7, 1.0) == 1.0 and harmonic(-0.3, 0.9) == 0.0 and harmonic(0, 0) == 0.0
    assert harmonic(None, 0.5) is None and harmonic(0.5, None) is None
    assert Number.of([]) is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_masks_survive_the_index(rows: int, columns: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.5
    found = decode_mask(encode_mask(mask))
    assert found is not None and (found == mask).all()


@given(st.binary(max_size=200))
def test_what_is_no_mask_is_none(data: bytes) -> None:
    assert decode_mask(data) is None
    assert decode_mask(None) is None


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.sampled_from("xy"), st.integers(0, 3)), max_size=12)
)
def test_the_newest_score_counts_whatever_the_order(rows: list[tuple[str, int, str, int]]) -> None:
    from datetime import datetime, timedelta, timezone

    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    scores = [
        Score(asset, take, "f", metric, "1", float(age), scored_at=start + timedelta(seconds=age))
        for asset, take, metric, age in rows
    ]
    found = table_to_scores(newest_scores(scores_to_table(scores)))
    expected = {
        key: max(ages)
        for key in product("ab", (0, 1), "xy")
        if (ages := [age for *own, age in rows if tuple(own) == key])
    }
    assert {(one.asset_id, one.take, one.metric): one.value for one in found} == expected
    again = newest_scores(pa.concat_tables([scores_to_table(found), scores_to_table(scores[::-1])]))
    assert table_to_scores(again) == found
