"""The drawn world: repeatable, described truthfully, and open about identity."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from consistory_ray.miniature.vocabulary import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    PICTURE_SIZE,
    SCENES,
    NamedAttributes,
    caption,
    describe,
    words,
)
from training.individuals import Identity, random_identity, random_placement
from training.world import PictureSpec, draw, random_caption, random_spec


def one(kind: str, scene: str = "in the forest", seed: int = 5, **changes: object) -> PictureSpec:
    """A picture of one subject."""
    rng = random.Random(seed)
    identity = Identity(kind, "red", "yellow", "plain", "none", "blue", 0)
    return PictureSpec((dataclasses.replace(identity, **changes),), (random_placement(rng),), scene, 11)  # type: ignore[arg-type]


def test_the_world_is_as_rich_as_promised() -> None:
    assert len(KINDS) >= 6 and len(SCENES) >= 10 and PICTURE_SIZE >= 128


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_depends_on_its_spec_alone(kind: str) -> None:
    first, again = draw(one(kind)), draw(one(kind))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert np.array_equal(first.masks, again.masks)
    assert first.image.size == (PICTURE_SIZE, PICTURE_SIZE) and first.masks.shape == (1, PICTURE_SIZE, PICTURE_SIZE)


def test_scenes_differ_and_their_seed_varies_them() -> None:
    pictures = [np.asarray(draw(one("cat", scene)).image).astype(int) for scene in SCENES]
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(picture - other).mean() > 5
    for scene in SCENES:
        spec = one("cat", scene)
        other = np.asarray(draw(dataclasses.replace(spec, scene_seed=12)).image)
        assert not np.array_equal(np.asarray(draw(spec).image), other), scene


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_fill_half_to_three_quarters_of_the_height_and_stay_inside(kind: str) -> None:
    rng = random.Random(3)
    for _ in range(4):
        spec = PictureSpec((random_identity(rng, kind),), (random_placement(rng),), "in space", 1)
        mask = draw(spec).masks[0]
        rows = np.flatnonzero((mask > 0.5).any(1))
        assert 0.45 <= (rows[-1] - rows[0] + 1) / PICTURE_SIZE <= 0.9
        border = np.concatenate([mask[:2].ravel(), mask[:, :2].ravel(), mask[:, -2:].ravel()])
        assert (border > 0.5).mean() < 0.05, "the subject is cut off"


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_an_identity_shows(kind: str) -> None:
    plain = np.asarray(draw(one(kind)).image).astype(int)
    changes = [{"body": "blue"}, {"second": "green"}, {"pattern": "spotted"}, {"pattern": "striped"}, {"variant": 1}]
    changes += [{"accessory": accessory} for accessory in ACCESSORIES if accessory != "none"]
    for change in changes:
        other = np.asarray(draw(one(kind, **change)).image).astype(int)
        changed = (np.abs(plain - other).max(2) > 30).sum()
        assert changed > 20, f"{change} changes {changed} pixels"


def test_flipping_mirrors_the_subject() -> None:
    spec = one("dragon")
    straight = dataclasses.replace(spec.placements[0], x=0.5, flip=False, tilt=0.0)
    masks = [
        draw(dataclasses.replace(spec, placements=(dataclasses.replace(straight, flip=flip),))).masks[0]
        for flip in (False, True)
    ]
    assert np.abs(masks[0][:, ::-1] - masks[1]).mean() < 0.02
    assert np.abs(masks[0] - masks[1]).mean() > 0.02


def test_masks_cover_what_changes_with_the_subject() -> None:
    red, blue = draw(one("octopus")), draw(one("octopus", body="blue"))
    changed = np.abs(np.asarray(red.image).astype(int) - np.asarray(blue.image).astype(int)).max(2) > 8
    assert changed.any() and red.masks[0][changed].min() > 0


def test_pairs_are_of_two_kinds_and_their_masks_do_not_overlap() -> None:
    rng = random.Random(1)
    for _ in range(8):
        spec = random_spec(rng, two_subjects=1.0)
        drawing = draw(spec)
        assert spec.subjects[0].kind != spec.subjects[1].kind
        assert drawing.masks.sum(0).max() <= 1 + 1e-5
        assert (drawing.masks.mean((1, 2)) > 0.04).all()


def test_captions_name_only_what_is_true_and_usually_not_the_identity() -> None:
    rng = random.Random(9)
    silent = 0
    for _ in range(400):
        spec = random_spec(rng, two_subjects=0.0)
        identity = spec.subjects[0]
        text = random_caption(rng, spec).split()
        assert identity.kind in text and " ".join(text).endswith(spec.scene)
        colours, patterns = set(COLOURS) & set(text), set(PATTERNS) & set(text)
        accessories = set(ACCESSORIES) & set(text)
        assert colours <= {identity.body} and patterns <= {identity.pattern} and accessories <= {identity.accessory}
        silent += not (colours or patterns or accessories)
    assert 0.25 <= silent / 400 <= 0.75


def test_descriptions_read_as_english() -> None:
    assert describe("octopus", NamedAttributes()) == "an octopus"
    assert describe("cat", NamedAttributes("orange", "striped", "hat")) == "an orange striped cat with a hat"
    assert describe("robot", NamedAttributes(accessory="glasses")) == "a robot with glasses"
    text = caption("a drawing of", ["cat", "snail"], [NamedAttributes(), NamedAttributes("red")], "in space")
    assert text == "a drawing of a cat and a red snail in space"


def test_every_caption_is_made_of_the_world_s_words() -> None:
    rng, known = random.Random(2), set(words())
    for _ in range(300):
        assert set(random_caption(rng, random_spec(rng, 0.5)).split()) <= known
