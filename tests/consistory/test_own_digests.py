"""The bundled model still renders what it did. Nothing is skipped here: model and numbers are in the repository."""

from __future__ import annotations

import json

import numpy as np
import torch

from consistory_ray.consistory import ConsiStoryPipeline
from tests.consistory import own_digests


def test_our_own_pictures_have_not_changed() -> None:
    pipe = ConsiStoryPipeline.from_pretrained(dtype=torch.float32, device="cpu")
    with np.load(own_digests.KEPT) as kept:
        told = json.loads(str(kept["about"]))
        assert told["model_fingerprint"] == pipe.fingerprint, "the bundled model is another: write the digests again"
        wrong = own_digests.compare(own_digests.all_cases(pipe), kept)
    assert not wrong, "\n".join(wrong)


def test_a_change_of_a_picture_or_a_mask_is_noticed() -> None:
    with np.load(own_digests.KEPT) as kept:
        found = {name: kept[name] for name in kept.files if name != "about"}
        assert not own_digests.compare(found, kept)
        found["plain.scenes.latents"] = found["plain.scenes.latents"] + 4e-4
        found["plain.scenes.mask_fine"] = ~found["plain.scenes.mask_fine"]
        del found["freeu.anchors.latents"]
        wrong = own_digests.compare(found, kept)
    assert [line.split(":")[0] for line in wrong] == [
        "freeu.anchors.latents",
        "plain.scenes.latents",
        "plain.scenes.mask_fine",
    ]
