"""A sheet's content from an output, which has anchors and words, and an export, which has the pictures as they ship."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from consistory_ray.export.atlas import open_sprite
from consistory_ray.export.character_sheet.content import SheetContent, Shown
from consistory_ray.export.character_sheet.palette import palette
from consistory_ray.export.packing import natural
from consistory_ray.export.records import Record
from consistory_ray.export.selection import Source
from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.files import bounded_map
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import MissingFileError, OutputStore
from consistory_ray.pictures.masks import decode_mask

MOST_SCENES = 240
"""Of a subject that are shown: ten pages or so."""
_ANCHOR_PIXELS, _SCENE_PIXELS = 1000, 560
"""Sides that pictures are kept at: what is printed of them at 300 dots per inch, at most."""
_MOST_FOR_COLOURS = 32
_SUBJECT_LIMITS = Limits(bytes=1 << 20, values=20_000, depth=12)
_ANCHOR_COLUMNS = ("subject", "scene", "path", "sha256", "prompt", "seed", "mask")


@dataclass(frozen=True)
class Material:
    """What one subject's sheet is made of, before a picture is decoded.

    Attributes:
        subject, run: ids.
        anchors: index rows of its anchors.
        records: of its exported pictures, anchors left out.
        sources: what those are of, in the same order.
        words: what ``subject.json`` says; empty where there is none.
    """

    subject: str
    run: str
    anchors: tuple[Mapping[str, Any], ...]
    records: tuple[Record, ...]
    sources: tuple[Source, ...]
    words: Mapping[str, Any]

    def identity(self) -> str:
        """What the sheet's content depends on, as text."""
        anchors = [{name: row[name] for name in _ANCHOR_COLUMNS if name != "mask"} for row in self.anchors]
        pictures = [(record.file, record.scene, record.take, record.sha256) for record in self.records]
        prompts = [(one.prompt, one.seed, one.model, one.model_fingerprint) for one in self.sources]
        return json.dumps([self.subject, self.run, anchors, pictures, prompts, self.words], sort_keys=True)


def materials(output: OutputStore, records: Sequence[Record], sources: Mapping[str, Source]) -> Iterator[Material]:
    """What the sheets of an export are made of, by subject.

    Args:
        output: where the pictures were rendered.
        records: of the export's files.
        sources: the pictures that they are of, by asset.

    Raises:
        StorageError: the output cannot be read.
    """
    table = read_index(output)
    table = table.filter(pc.and_(pc.equal(table["kind"], "anchor"), pc.equal(table["status"], "ok")))
    rows = table.select(list(_ANCHOR_COLUMNS)).to_pylist()
    found = read_run_record(output)
    run = found.name if found is not None else output.root.rsplit("/", 1)[-1]
    own = [record for record in records if record.asset_id in sources]
    for subject in sorted({record.subject for record in own}, key=natural):
        scenes = [one for one in own if one.subject == subject and sources[one.asset_id].kind != "anchor"]
        scenes.sort(key=lambda one: (natural(one.scene), one.take or 1))
        anchors = sorted((row for row in rows if row["subject"] == subject), key=lambda row: natural(row["scene"]))
        if scenes or anchors:
            shown = tuple(sources[one.asset_id] for one in scenes)
            yield Material(subject, run, tuple(anchors), tuple(scenes), shown, _words(output, subject))


def read_content(material: Material, output: OutputStore, export: OutputStore) -> SheetContent:
    """A sheet's content, pictures decoded.

    Raises:
        AssetError: a picture cannot be decoded.
        StorageError: one cannot be read.
    """
    anchor_files = list(bounded_map(lambda row: output.read(row["path"]), material.anchors))
    anchors = [
        open_sprite(data, row["path"]).convert("RGB") for data, row in zip(anchor_files, material.anchors, strict=True)
    ]
    records, sources = material.records[:MOST_SCENES], material.sources[:MOST_SCENES]
    images = list(bounded_map(lambda record: _cut(open_sprite(export.read(record.file), record.file)), records))
    told = next((found for data in anchor_files if (found := read_metadata(data))), None)
    if told is None and sources:
        told = read_metadata(output.read(sources[0].path))
    masks = [decode_mask(row["mask"]) for row in material.anchors]
    return SheetContent(
        title=material.subject,
        run=material.run,
        lead=_lead(material),
        details=_text(material.words.get("details")),
        anchors=tuple(
            Shown(
                _small(image, _ANCHOR_PIXELS), f"Anchor {number + 1}", _tidy(row["prompt"]), _origin(data, row["seed"])
            )
            for number, (image, data, row) in enumerate(zip(anchors, anchor_files, material.anchors, strict=True))
        ),
        scenes=tuple(_scenes(records, sources, images)),
        palette=palette(_for_colours(images, anchors, sources, masks)),
        facts=tuple(_facts(material, told or {})),
        left_out=len(material.records) - len(records),
    )


def _scenes(records: Sequence[Record], sources: Sequence[Source], images: Sequence[Image.Image]) -> Iterator[Shown]:
    counts = Counter(record.scene for record in records)
    head = _common_words([source.prompt for source in sources])
    for record, source, image in zip(records, sources, images, strict=True):
        label = f"{record.scene}, take {record.take}" if counts[record.scene] > 1 else record.scene
        words = _tidy(source.prompt[len(head) :] or source.prompt)
        same = "".join(filter(str.isalnum, words.lower())) == "".join(filter(str.isalnum, record.scene.lower()))
        yield Shown(image, label, "" if same else words, f"seed {source.seed}")


def _common_words(texts: Sequence[str]) -> str:
    """What several texts begin with, in whole words; nothing of a single one."""
    if len(texts) < 2:
        return ""
    words = [text.split(" ") for text in texts]
    same = 0
    while all(len(one) > same for one in words) and len({one[same] for one in words}) == 1:
        same += 1
    return " ".join(words[0][:same]) + (" " if same else "")


def _words(output: OutputStore, subject: str) -> dict[str, Any]:
    """What ``subject.json`` says."""
    try:
        values = parse_json(output.read(f"anchors/{subject}/subject.json"), _SUBJECT_LIMITS)
    except (MissingFileError, ValueError):  # of a subject that was taken up from elsewhere, or made up
        return {}
    kept = ("style", "subject", "details", "concept", "settings", "loras")
    return {name: values[name] for name in kept if name in values} if isinstance(values, dict) else {}


def _lead(material: Material) -> str:
    told = " ".join(filter(None, (_text(material.words.get(name)) for name in ("style", "subject"))))
    prompts = [row["prompt"] for row in material.anchors] or [source.prompt for source in material.sources]
    return told or _tidy(_common_words(prompts)) or (prompts[0] if prompts else "")


def _origin(data: bytes, seed: int) -> str:
    return "given" if (read_metadata(data) or {}).get("given") else f"seed {seed}"


def _facts(material: Material, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings = told.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    yield "Model", _text(told.get("model"))
    yield "Fingerprint", _text(told.get("model_fingerprint"))[:16]
    seeds = told.get("anchor_seeds") or []
    if seeds:
        yield "Seeds", ", ".join(map(str, seeds))
    names = {"num_inference_steps": "Steps", "guidance_scale": "Guidance", "scheduler": "Scheduler"}
    yield from ((name, _text(settings[key])) for key, name in names.items() if settings.get(key) is not None)
    sizes = dict.fromkeys(f"{source.width} x {source.height} px" for source in material.sources)
    yield from (("Size", size) for size in [*sizes][:1])
    yield "Profile", _text(told.get("profile") or "exact")
    if negative := _text(told.get("negative_prompt")):
        yield "Without", negative
    loras = told.get("loras") or []
    names_of = [_text(one.get("name")) for one in loras if isinstance(one, dict)]
    if names_of:
        yield "LoRAs", ", ".join(names_of)
    yield "Run", material.run


def _for_colours(
    images: Sequence[Image.Image],
    anchors: Sequence[Image.Image],
    sources: Sequence[Source],
    masks: Sequence[Any],
) -> list[Image.Image]:
    """Cut-out pictures that colours are looked for in: sprites, or whole ones behind the run's masks."""
    cut_out = [image for image in images if image.mode == "RGBA"]
    if not cut_out:
        whole = [*zip(anchors, masks, strict=True)]
        whole += [(image, decode_mask(source.mask)) for image, source in zip(images, sources, strict=True)]
        cut_out = [_behind(image, mask) for image, mask in whole if mask is not None]
    step = max(1, -(-len(cut_out) // _MOST_FOR_COLOURS))
    return cut_out[::step]


def _behind(image: Image.Image, mask: Any) -> Image.Image:
    """A picture with only those parts opaque that are well inside of a mask of coarse tokens."""
    alpha = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    shown = image.convert("RGBA")
    shown.putalpha(alpha.point(lambda value: 255 if value >= 224 else 0))
    return shown


def _cut(image: Image.Image) -> Image.Image:
    """A sprite without its empty borders, or a whole picture as RGB; both no larger than is printed."""
    low, _ = image.getchannel("A").getextrema()
    if low == 255:
        return _small(image.convert("RGB"), _SCENE_PIXELS)
    return _small(image.crop(image.getchannel("A").getbbox() or (0, 0, 1, 1)), _SCENE_PIXELS)


def _small(image: Image.Image, side: int) -> Image.Image:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _text(value: Any) -> str:
    """A value of somebody's file as one line of text."""
    return _tidy(str(value)) if isinstance(value, (str, int, float)) else ""


def _tidy(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split()).strip(" ,")
