"""Sprites to lay out, and a slow, obvious reader of what was laid out."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from consistory_ray.export.atlas import Sprite
from consistory_ray.export.atlas_files import AtlasRules, atlas_files
from consistory_ray.export.records import write_if_changed
from consistory_ray.output.storage import OutputStore


def blob(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """A picture with something in it, no two alike and no side like another, on transparent ground."""
    chance = random.Random(seed)
    image = Image.new("RGBA", size)
    pen = ImageDraw.Draw(image)
    left, upper = chance.randrange(size[0] // 2), chance.randrange(size[1] // 2)
    right, lower = left + chance.randrange(4, size[0] // 2), upper + chance.randrange(4, size[1] // 2)
    pen.rectangle((left, upper, right, lower), fill=tuple(chance.randrange(256) for _ in range(3)))
    pen.line((left, upper, right, upper), fill=(255, 0, 0, 128))
    pen.line((left, lower, right, lower), fill=(255, 255, 0))
    pen.line((right, upper + 1, right, lower - 1), fill=(0, 255, 0, 1))
    return image


def keep(store: OutputStore, name: str, image: Image.Image, path: str = "", ending: str = "png", **more: Any) -> Sprite:
    """Write a sprite's file into an export's folder."""
    file = io.BytesIO()
    image.save(file, ending.upper(), **({"lossless": True, "exact": True} if ending == "webp" else {}))
    path = path or f"{name}.{ending}"
    store.write_atomic(path, file.getvalue())
    return Sprite(name, path, hashlib.sha256(file.getvalue()).hexdigest(), **more)


@dataclass(frozen=True)
class Written:
    """Paths of an atlas's files, and of those that were not there as they are."""

    files: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def pages(self) -> list[str]:
        return [path for path in self.files if path.endswith(".json")]


def write_atlases(
    store: OutputStore, atlases: Mapping[str, Sequence[Sprite]], rules: AtlasRules | None = None, **more: Any
) -> Written:
    """Write atlases as an export does."""
    files, written = [], []
    for path, data in atlas_files(store, atlases, rules, **more):
        files.append(path)
        if write_if_changed(store, path, data):
            written.append(path)
    return Written(tuple(files), tuple(written))


def read_atlas(store: OutputStore, name: str) -> dict[str, Image.Image]:
    """The untrimmed pictures that an atlas holds, by frame, as the format is documented."""
    found: dict[str, Image.Image] = {}
    waiting, seen = [f"atlas/{name}.json"], set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        values = json.loads(store.read(path))
        meta = values["meta"]
        page = Image.open(io.BytesIO(store.read(f"atlas/{meta['image']}"))).convert("RGBA")
        assert page.size == (meta["size"]["w"], meta["size"]["h"])
        for frame, told in values["frames"].items():
            assert frame not in found
            x, y, width, height = (told["frame"][key] for key in "xywh")
            if told["rotated"]:
                part = page.crop((x, y, x + height, y + width)).rotate(90, expand=True)  # back, counterclockwise
            else:
                part = page.crop((x, y, x + width, y + height))
            picture = Image.new("RGBA", (told["sourceSize"]["w"], told["sourceSize"]["h"]))
            place = told["spriteSourceSize"]
            assert (place["w"], place["h"]) == (width, height) == part.size
            assert told["trimmed"] == (part.size != picture.size)
            picture.paste(part, (place["x"], place["y"]))
            found[frame] = picture
        waiting += [f"atlas/{one}" for one in meta.get("related_multi_packs", [])]
    return found
