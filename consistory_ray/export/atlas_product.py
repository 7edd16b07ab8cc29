"""Atlases as a product of an export: from its records to sprites, and from those to files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from consistory_ray.errors import InputError, Problem
from consistory_ray.export.atlas import Sprite
from consistory_ray.export.atlas_files import ALL, ATLAS_FOLDER, AtlasRules, Per, atlas_files
from consistory_ray.export.packing import Size
from consistory_ray.export.records import Record
from consistory_ray.output.storage import OutputStore


@dataclass(frozen=True)
class Atlases:
    """Makes an export's atlases.

    Attributes:
        rules: how sprites are laid out.
        sizes: width and height of the pictures that they are of, by asset; without them a sprite stands for itself.
        on_progress: is told how many of how many pages are made.
        should_stop: is asked before every page whether to stop.
    """

    rules: AtlasRules
    sizes: Mapping[str, Size] = field(default_factory=dict)
    on_progress: Callable[[int, int], None] | None = None
    should_stop: Callable[[], bool] = lambda: False

    def __call__(self, store: OutputStore, records: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
        """The files of atlases, see :func:`.atlas_files.atlas_files`."""
        atlases = sprites_of(records, self.sizes, self.rules.per)
        return atlas_files(store, atlases, self.rules, on_progress=self.on_progress, should_stop=self.should_stop)


def first_names(rules: AtlasRules, subjects: Iterable[str]) -> list[str]:
    """Names of the files that atlases of these subjects have in any case; how many pages follow is not known yet."""
    names = sorted(set(subjects)) if rules.per == "subject" else [ALL]
    return [f"{ATLAS_FOLDER}/{name}.{ending}" for name in names for ending in (rules.format, "json")]


def sprites_of(records: Sequence[Record], sizes: Mapping[str, Size], per: Per) -> dict[str, list[Sprite]]:
    """The sprites of each atlas by its name. Frames are named by scenes, and by takes where a scene has several.

    Raises:
        InputError: two frames would have one name.
    """
    pictures = [record for record in records if record.is_there and record.asset_id]
    counts = Counter((record.subject, record.scene) for record in pictures)
    has_takes = any(count > 1 for count in counts.values())
    atlases: dict[str, list[Sprite]] = {}
    taken: dict[tuple[str, str], Record] = {}
    for record in pictures:
        scene = f"{record.scene}_{record.take or 1}" if has_takes else record.scene
        atlas, frame = (record.subject, scene) if per == "subject" else (ALL, f"{record.subject}/{scene}")
        other = taken.setdefault((atlas, frame), record)
        if other is not record:
            fix = f"two pictures would be this frame, {other.file} and {record.file}: export one of them, --scene helps"
            raise InputError("the atlas cannot be made", [Problem("--atlas", frame, fix)])
        atlases.setdefault(atlas, []).append(_sprite(frame, record, sizes.get(record.asset_id)))
    return atlases


def _sprite(frame: str, record: Record, size: Size | None) -> Sprite:
    sha256 = record.sha256 or ""
    if size is None or record.box is None or record.placed is None:
        return Sprite(frame, record.file, sha256)
    left, top, width, height = record.box
    scales = record.placed[2] / max(width, 1), record.placed[3] / max(height, 1)
    source = max(1, round(size[0] * scales[0])), max(1, round(size[1] * scales[1]))
    offset = round(left * scales[0]) - record.placed[0], round(top * scales[1]) - record.placed[1]
    return Sprite(frame, record.file, sha256, source, offset)
