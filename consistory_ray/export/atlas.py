"""Pages of sprites, and TexturePacker's JSON hash that says where on them each one is.

What a game engine reads: PixiJS and Phaser take these files as they are, and importers of others know the format.

    {"frames": {"in-space": {"frame": {"x": 1, "y": 1, "w": 80, "h": 96}, "rotated": false, "trimmed": true,
                             "spriteSourceSize": {"x": 22, "y": 30, "w": 80, "h": 96},
                             "sourceSize": {"w": 128, "h": 128}, "pivot": …, "anchor": …, "source": …}, …},
     "animations": {"walk": ["walk-1", "walk-2"]},
     "meta": {"app": …, "image": "moss-dragon.png", "format": "RGBA8888", "size": …, "scale": "1",
              "related_multi_packs": ["moss-dragon~2.json"]}}

``frame`` is where the pixels lie on the page, with width and height as they are before a rotated frame was turned by 90
degrees clockwise. ``spriteSourceSize`` is where they belong in the untrimmed picture, whose size is ``sourceSize``.
``source``, which engines ignore, tells which file of the export it was.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from consistory_ray.errors import AssetError
from consistory_ray.export.packing import Page, Placed, Size, natural
from consistory_ray.pictures.provenance import PACKET, XMP_KEYWORD

PageFormat = Literal["png", "webp"]
APP = "consistory-ray"
"""What ``meta.app`` says in the files of this package, and no others."""
LAYOUT_VERSION = 1
"""Goes up when the same sprites would be drawn otherwise: pages are then made again."""
_MAX_SPRITE_PIXELS = 8192 * 8192
_NUMBERED = re.compile(r"(.+?)[-_.]?([0-9]+)")


@dataclass(frozen=True, slots=True)
class Sprite:
    """A picture file that an atlas shows.

    Attributes:
        name: of its frame.
        path, sha256: its file, PNG or WebP, and the file's checksum.
        source_size, offset: of the picture that it was cut out of, and where in that its file begins; None where the
            file is the whole picture.
    """

    name: str
    path: str
    sha256: str
    source_size: Size | None = None
    offset: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """Which part of a sprite's file has pixels that can be seen, in pixels from its upper left corner.

    Attributes:
        x, y, width, height: that part.
        file_size: of the whole picture in the file.
    """

    x: int
    y: int
    width: int
    height: int
    file_size: Size


@dataclass(frozen=True, slots=True)
class Frame:
    """What an atlas shows of a sprite.

    Attributes:
        sprite: which.
        seen: what was found in its file.
        x, y, width, height: the part that is shown, in pixels of the picture that it was cut out of.
        source_size: of that picture.
    """

    sprite: Sprite
    seen: Seen
    x: int
    y: int
    width: int
    height: int
    source_size: Size


def open_sprite(data: bytes, path: str) -> Image.Image:
    """A sprite's pixels, RGBA.

    Raises:
        AssetError: it is no still PNG or WebP of at most 8192 x 8192 pixels, or it is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "WEBP"]) as image:
            if image.width * image.height > _MAX_SPRITE_PIXELS or getattr(image, "n_frames", 1) != 1:
                raise ValueError("it is an animation, or larger than 8192 x 8192 pixels")
            return image.convert("RGBA")
    except Exception as error:  # decoders have dozens of ways to fail
        raise AssetError(f"{path} cannot be decoded: {error}; export it again") from error


def seen_in(image: Image.Image) -> Seen:
    """The smallest rectangle around what can be seen of a sprite (RGBA); one pixel where there is nothing to see."""
    left, upper, right, lower = image.getchannel("A").getbbox() or (0, 0, 1, 1)
    return Seen(left, upper, right - left, lower - upper, image.size)


def frame_of(sprite: Sprite, seen: Seen, *, whole: bool) -> Frame:
    """What is shown of a sprite: what can be seen, or the ``whole`` picture that it was cut out of."""
    width, height = sprite.source_size or seen.file_size
    x, y = sprite.offset[0] + seen.x, sprite.offset[1] + seen.y
    beyond = max(-x, -y, x + seen.width - width, y + seen.height - height)
    if beyond == 1:  # scaled, its size and its place were rounded each for itself
        x, y = min(max(x, 0), width - seen.width), min(max(y, 0), height - seen.height)
        sprite = replace(sprite, offset=(x - seen.x, y - seen.y))
    if beyond > 1 or min(x, y) < 0:  # it is not where it was in that picture, or does not fit
        x, y, (width, height) = seen.x, seen.y, seen.file_size
        sprite = replace(sprite, source_size=None, offset=(0, 0))
    shown = (0, 0, width, height) if whole else (x, y, seen.width, seen.height)
    return Frame(sprite, seen, *shown, (width, height))


def draw_page(page: Page, frames: Mapping[str, Frame], images: Iterable[Image.Image], extrude: int) -> Image.Image:
    """A page's pixels, RGBA, transparent where no sprite is.

    Args:
        page: what lies where.
        frames: by name.
        images: the sprites' pixels, RGBA, in the order of ``page.placed``.
        extrude: how often each frame's border pixels are repeated around it.
    """
    canvas = np.zeros((page.height, page.width, 4), np.uint8)
    for placed, image in zip(page.placed, images, strict=True):
        frame = frames[placed.name]
        part = Image.new("RGBA", (frame.width, frame.height))
        part.paste(image, (frame.sprite.offset[0] - frame.x, frame.sprite.offset[1] - frame.y))
        if placed.rotated:
            part = part.transpose(Image.Transpose.ROTATE_270)  # which Pillow counts counterclockwise
        pixels = np.pad(np.asarray(part), ((extrude, extrude), (extrude, extrude), (0, 0)), mode="edge")
        upper, left = placed.y - extrude, placed.x - extrude
        canvas[upper : upper + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return Image.fromarray(canvas)


def encode_page(image: Image.Image, kind: PageFormat) -> bytes:
    """A page's file, without loss, which says that a model made what is on it.

    The same bytes for the same pixels, as long as Pillow is the same.
    """
    buffer = io.BytesIO()
    if kind == "png":
        info = PngInfo()
        info.add_itxt(XMP_KEYWORD, PACKET)
        image.save(buffer, "PNG", pnginfo=info, compress_level=9)
    else:
        image.save(buffer, "WEBP", lossless=True, exact=True, quality=80, method=4, xmp=PACKET.encode())
    return buffer.getvalue()


def frame_json(frame: Frame, placed: Placed, pivot: tuple[float, float]) -> dict[str, Any]:
    """What the JSON says of one sprite."""
    size = {"w": frame.width, "h": frame.height}
    point = {"x": pivot[0], "y": pivot[1]}
    seen = frame.seen
    return {
        "frame": {"x": placed.x, "y": placed.y, **size},
        "rotated": placed.rotated,
        "trimmed": (frame.width, frame.height) != frame.source_size,
        "spriteSourceSize": {"x": frame.x, "y": frame.y, **size},
        "sourceSize": {"w": frame.source_size[0], "h": frame.source_size[1]},
        "pivot": point,  # for Phaser and older readers
        "anchor": point,  # for PixiJS
        "source": {
            "path": frame.sprite.path,
            "sha256": frame.sprite.sha256,
            "size": [*seen.file_size],
            "seen": [seen.x, seen.y, seen.width, seen.height],
        },
    }


def animations_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Frames whose names differ in their last number alone, in its order: ``walk`` is ``walk-1``, ``walk-2``, …"""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=natural):
        if match := _NUMBERED.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    return {stem: members for stem, members in found.items() if len(members) > 1}


def page_json(
    frames: Mapping[str, Any], image: str, page: Page, others: Sequence[str], made: Mapping[str, Any]
) -> bytes:
    """The file beside a page.

    Args:
        frames: by name.
        image: the page's file name.
        page: its size.
        others: names of the files beside this atlas's other pages.
        made: what is known of the page's file; engines ignore it.
    """
    meta: dict[str, Any] = {"app": APP, "version": "1.0", "image": image, "format": "RGBA8888"}
    meta |= {"size": {"w": page.width, "h": page.height}, "scale": "1", **made}
    if others:
        meta["related_multi_packs"] = list(others)
    names = sorted(frames, key=natural)
    told: dict[str, Any] = {"frames": {name: frames[name] for name in names}}
    if animations := animations_of(names):
        told["animations"] = animations
    return (json.dumps({**told, "meta": meta}, indent=1) + "\n").encode()
