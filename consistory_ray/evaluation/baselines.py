"""What would the simplest means reach? One seed for all scenes, words in the prompt, colours painted over.

None of them knows the method; a method has to be better than all of them. Words can be joined with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from consistory_ray.evaluation.hard_attributes import Look
from consistory_ray.evaluation.measures import lab_to_srgb, srgb_to_lab
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.miniature.vocabulary import NamedAttributes, describe


def one_seed(subject: SubjectPrompts) -> SubjectPrompts:
    """The subject's scenes from the first one's seed."""
    return replace(subject, seeds=subject.seeds[:1] * len(subject.seeds))


def naming_colours(subject: SubjectPrompts, look: Look | None) -> SubjectPrompts:
    """The subject's scenes with two colours in their prompts: "a red and blue dragon" for "a dragon".

    Args:
        subject: the kind stands once in its prompts, after its article.
        look: whose body and second colour; None, where nobody was seen, names none.
    """
    if look is None:
        return subject
    colours = f"{look['body']} and {look['second']}"
    return _called(subject, f"{'an' if colours[0] in 'aeiou' else 'a'} {colours} {subject.kind}")


def naming_details(subject: SubjectPrompts, look: Look | None) -> SubjectPrompts:
    """The subject with what makes the individual in all of its prompts: "a red striped dragon with a hat".

    Args:
        subject: the kind stands once in its prompts, after its article.
        look: whose body colour, pattern and accessory, which are what the model's captions name; a plain pattern and
            nothing worn go without saying. None, where nobody was seen, names nothing.
    """
    if look is None:
        return subject
    told = NamedAttributes(
        look["body"],
        None if look["pattern"] == "plain" else look["pattern"],
        None if look["accessory"] == "none" else look["accessory"],
    )
    return _called(subject, describe(subject.kind, told))


def _called(subject: SubjectPrompts, words: str) -> SubjectPrompts:
    was = f"{'an' if subject.kind[0] in 'aeiou' else 'a'} {subject.kind}"
    anchors, prompts = (
        tuple(text.replace(was, words) for text in texts) for texts in (subject.anchors, subject.prompts)
    )
    return replace(subject, anchors=anchors, prompts=prompts)


def colours_transferred(images: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures in which every subject has the first one's mean colour and spread of colours.

    Each channel of CIELAB inside the mask is shifted and scaled to the mean and the standard deviation of the first
    picture (Reinhard et al., Color Transfer between Images, 2001, with CIELAB for their space); everything else stays.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        masks: the subject in each, bool ``[H, W]``; where one is empty, nothing is changed.
    """
    done = images.copy()
    if not masks[0].any():
        return done
    model = srgb_to_lab(images[0][masks[0]])
    for image, mask in zip(done[1:], masks[1:], strict=True):
        if mask.any():
            own = srgb_to_lab(image[mask])
            moved = (own - own.mean(0)) / (own.std(0) + 1e-6) * model.std(0) + model.mean(0)
            image[mask] = np.clip(np.round(lab_to_srgb(moved)), 0, 255).astype(np.uint8)
    return done
