"""One picture on its way through an export: a frozen value, and the steps that it goes through.

A step is a function from :class:`Picture` to :class:`Picture`, without files, clocks or randomness. Which steps there
are, in which order, follows from the options (:mod:`.steps`). What a picture is encoded as comes after them
(:mod:`.encoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL import Image

from consistory_ray.errors import AssetError
from consistory_ray.export.options import MAX_SIDE
from consistory_ray.export.selection import Source


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of whole pixels, from the upper left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, as Pillow crops."""
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is now.

    Attributes:
        source: what it is of.
        image: RGB, or RGBA once it is cut out.
        box: what of the source picture is in it, in the source's pixels.
        placed: where that is in the image, in the image's pixels: smaller than the image where it was padded.
        texts: what the source's file says of itself, by the name of the text chunk.
        notes: what people have to know of it: ``touches the frame: left``.
        file: the source's bytes while the image is still theirs.
        made: whether a model made it; of a picture that was given nobody knows how it came to be.
    """

    source: Source
    image: Image.Image
    box: Box
    placed: Box
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file: bytes | None = None
    made: bool = True

    def changed(self, image: Image.Image, *, box: Box | None = None, placed: Box | None = None) -> Picture:
        """The same picture with other pixels."""
        whole = Box(0, 0, image.width, image.height)
        return replace(self, image=image, box=box or self.box, placed=placed or whole, file=None)


Step = Callable[[Picture], Picture]


class NotCutOutError(AssetError):
    """There is no sprite of a picture.

    Attributes:
        state: of its record.
    """

    def __init__(self, state: Literal["empty_mask", "no_mask"], message: str) -> None:
        super().__init__(message)
        self.state: Literal["empty_mask", "no_mask"] = state

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.state, str(self)))


def trim(picture: Picture) -> Picture:
    """Without the empty rows and columns around what is not fully transparent."""
    found = picture.image.getchannel("A").getbbox()
    if found is None:
        raise AssetError("nothing is left of the subject")
    left, top, right, bottom = found
    box = Box(picture.box.left + left, picture.box.top + top, right - left, bottom - top)
    return picture.changed(picture.image.crop(found), box=box)


def scale(picture: Picture, factor: float, longer: int | None) -> Picture:
    """At another size, by area where it shrinks and smoothly where it grows.

    Args:
        factor: of both sides.
        longer: the longer side in pixels, instead of the factor; None for none.
    """
    width, height = picture.image.size
    factor = factor if longer is None else longer / max(width, height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if max(size) > MAX_SIDE:
        raise AssetError(f"it would be {size[0]} x {size[1]} pixels, more than {MAX_SIDE}")
    # Pillow weighs colours with their alpha while it resizes RGBA
    image = picture.image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC)
    return picture.changed(image)


def pad(picture: Picture, pixels: int) -> Picture:
    """With transparent pixels on every side."""
    width, height = picture.image.size
    return _on_ground(picture, (width + 2 * pixels, height + 2 * pixels))


def power_of_two(picture: Picture) -> Picture:
    """On a ground whose sides are powers of two, as old GPUs and mip maps want textures."""
    width, height = picture.image.size
    return _on_ground(picture, (1 << (width - 1).bit_length(), 1 << (height - 1).bit_length()))


def _on_ground(picture: Picture, size: tuple[int, int]) -> Picture:
    """In the middle of a larger transparent ground."""
    if max(size) > MAX_SIDE:
        raise AssetError(f"it would be {size[0]} x {size[1]} pixels, more than {MAX_SIDE}")
    left, top = (size[0] - picture.image.width) // 2, (size[1] - picture.image.height) // 2
    ground = Image.new("RGBA", size)
    ground.paste(picture.image, (left, top))
    old = picture.placed
    return picture.changed(ground, placed=Box(old.left + left, old.top + top, old.width, old.height))


def touched_sides(alpha: np.ndarray) -> tuple[str, ...]:
    """At which sides of the picture there is something of the subject, alpha ``[h, w]`` in 0 to 1."""
    seen = alpha >= 0.5
    sides = {"left": seen[:, 0], "top": seen[0], "right": seen[:, -1], "bottom": seen[-1]}
    return tuple(side for side, edge in sides.items() if edge.any())
