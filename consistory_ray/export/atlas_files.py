"""Atlases in an export's folder: written page by page, those that are there already left alone, old ones removed.

    atlas/moss-dragon.json, atlas/moss-dragon.png       first page, of this name however many there are
    atlas/moss-dragon~2.json, atlas/moss-dragon~2.png   further ones; no id has a ~

Each file is whole or absent, and a page's picture is there before its JSON, which says with a key what the picture
depends on: the same sprites and rules are not drawn again, and sprites of which one of the JSON files knows the
checksum are not measured again. What a kill leaves behind the next export of the same makes whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from PIL import Image

from consistory_ray.errors import RunInterrupted
from consistory_ray.export.atlas import (
    APP,
    LAYOUT_VERSION,
    Frame,
    PageFormat,
    Seen,
    Sprite,
    draw_page,
    encode_page,
    frame_json,
    frame_of,
    open_sprite,
    page_json,
    seen_in,
)
from consistory_ray.export.packing import Page, PageRules, check_rules, natural, pack
from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.output.files import bounded_map
from consistory_ray.output.storage import OutputStore

ATLAS_FOLDER = "atlas"
Per = Literal["subject", "all"]
ALL = "all~sprites"
_LIMITS = Limits(bytes=64 << 20, values=8_000_000, depth=8)
_MAX_SIDE = 1 << 16


@dataclass(frozen=True, slots=True)
class AtlasRules:
    """How sprites are laid out.

    Attributes:
        pages: what pages are like.
        per: one atlas for each subject, its frames named by scenes, or one for all, ``subject/scene``.
        format: of pages, both without loss.
        pivot: the point that a frame is placed by, in shares of its untrimmed width and height.
    """

    pages: PageRules = field(default_factory=PageRules)
    per: Per = "subject"
    format: PageFormat = "png"
    pivot: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True, slots=True)
class AtlasFile:
    """A file of an atlas, below the export: its path, bytes and SHA-256, and the frames that are on its page."""

    path: str
    size: int
    sha256: str
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AtlasResult:
    """What was done.

    Attributes:
        files: all of the atlases', pictures and JSON.
        written: paths of those that were not there already.
        removed: paths of older ones.
    """

    files: tuple[AtlasFile, ...]
    written: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return len(self.files) // 2


def write_atlases(
    store: OutputStore,
    atlases: Mapping[str, Sequence[Sprite]],
    rules: AtlasRules | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AtlasResult:
    """Write the atlases of an export's sprites, and remove those that it no longer has.

    At most one page and a few sprites are in memory at a time.

    Args:
        store: the export's folder.
        atlases: the sprites of each atlas by its name; names of frames are unique in an atlas.
        rules: how they are laid out.
        on_progress: is told how many of how many pages are there.
        should_stop: is asked before every page whether to stop.

    Raises:
        InputError: a sprite is larger than a page, or there can be no such pages; nothing was written.
        AssetError: a sprite cannot be decoded.
        RunInterrupted: it was stopped.
        StorageError: the storage failed.
    """
    rules = rules or AtlasRules()
    check_rules(rules.pages)
    there = {file.path: file.size for file in store.list_files(ATLAS_FOLDER)}
    ours = _written_before(store, there)
    laid = _laid_out(store, atlases, rules, _seen_before(ours))
    total = sum(len(one.pages) for one in laid)
    files: list[AtlasFile] = []
    written: list[str] = []
    for one in laid:
        for number in range(len(one.pages)):
            if should_stop():
                raise RunInterrupted("stopped while atlases were written; the same command goes on")
            before = ours.get(one.path(number, "json"), {}).get("meta", {})
            page_files, new = _write_page(store, one, number, rules, before, there)
            files += page_files
            written += new
            if on_progress is not None:
                on_progress(len(files) // 2, total)
    kept = {file.path for file in files}
    removed = [path for path in _paths_of(ours) if path not in kept and path in there]
    for path in removed:
        store.delete(path)
    return AtlasResult(tuple(files), tuple(written), tuple(removed))


@dataclass(frozen=True, slots=True)
class _Laid:
    """An atlas that was laid out: its frames by name, and what lies where."""

    name: str
    frames: Mapping[str, Frame]
    pages: Sequence[Page]

    def path(self, number: int, ending: str) -> str:
        """Of a page, from 0."""
        return f"{ATLAS_FOLDER}/{self.name}{f'~{number + 1}' if number else ''}.{ending}"

    def key(self, page: Page, rules: AtlasRules) -> str:
        """What a page's pixels depend on, as a hash."""
        parts: list[Any] = [LAYOUT_VERSION, rules.format, rules.pages.extrude, page.width, page.height]
        parts += [[asdict(placed), asdict(self.frames[placed.name])] for placed in page.placed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _laid_out(
    store: OutputStore, atlases: Mapping[str, Sequence[Sprite]], rules: AtlasRules, known: dict[str, Seen]
) -> list[_Laid]:
    """Every atlas, so that what does not fit is told before anything is written."""
    laid = []
    for name in sorted(atlases, key=natural):
        sprites = {sprite.name: sprite for sprite in atlases[name]}
        if len(sprites) != len(atlases[name]):
            raise ValueError(f"two frames of the atlas {name} have the same name")
        new = [sprite for sprite in sprites.values() if sprite.sha256 not in known]
        for sprite, seen in zip(new, bounded_map(lambda one: seen_in(_opened(store, one)), new), strict=True):
            known[sprite.sha256] = seen
        on_a_grid = rules.pages.arrangement == "grid"  # cells of one size, nothing moves from one to the next
        frames = {frame: frame_of(one, known[one.sha256], whole=on_a_grid) for frame, one in sprites.items()}
        if frames:
            sizes = {name: (frame.width, frame.height) for name, frame in frames.items()}
            laid.append(_Laid(name, frames, pack(sizes, rules.pages)))
    return laid


def _opened(store: OutputStore, sprite: Sprite) -> Image.Image:
    return open_sprite(store.read(sprite.path), sprite.path)


def _write_page(
    store: OutputStore, laid: _Laid, number: int, rules: AtlasRules, before: Mapping[str, Any], there: Mapping[str, int]
) -> tuple[list[AtlasFile], list[str]]:
    """A page's picture and JSON; and the paths of those that were not there.

    Args:
        store, laid, rules: see :func:`write_atlases`.
        number: of the page, from 0.
        before: what the JSON in its place says of itself; empty where there is none.
        there: sizes of files by path.
    """
    page, image_path, json_path = laid.pages[number], laid.path(number, rules.format), laid.path(number, "json")
    made, written = {"key": laid.key(page, rules)}, []
    if before.get("key") == made["key"] and _is_whole(store, image_path, before, there):
        made |= {"bytes": before["bytes"], "sha256": before["sha256"]}
    else:
        images = bounded_map(lambda placed: _opened(store, laid.frames[placed.name].sprite), page.placed)
        data = encode_page(draw_page(page, laid.frames, images, rules.pages.extrude), rules.format)
        made |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        store.write_atomic(image_path, data)
        written.append(image_path)
    frames = {placed.name: frame_json(laid.frames[placed.name], placed, rules.pivot) for placed in page.placed}
    others = [_name(laid.path(other, "json")) for other in range(len(laid.pages)) if other != number]
    text = page_json(frames, _name(image_path), page, others, made)
    if there.get(json_path) != len(text) or store.read(json_path) != text:
        store.write_atomic(json_path, text)
        written.append(json_path)
    return [
        AtlasFile(image_path, made["bytes"], made["sha256"], tuple(frames)),
        AtlasFile(json_path, len(text), hashlib.sha256(text).hexdigest(), tuple(frames)),
    ], written


def _is_whole(store: OutputStore, path: str, before: Mapping[str, Any], there: Mapping[str, int]) -> bool:
    """Whether a page's picture is the one that its JSON speaks of."""
    size, digest = before.get("bytes"), before.get("sha256")
    return path in there and there[path] == size and store.sha256(path) == digest


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _written_before(store: OutputStore, there: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The JSON files of atlases that this package wrote, by path. Whatever else lies there is left alone."""
    found: dict[str, dict[str, Any]] = {}
    paths = [path for path in there if path.endswith(".json")]
    for path, data in zip(paths, bounded_map(store.read, paths), strict=True):
        try:
            values = parse_json(data, _LIMITS)
        except ValueError:  # cut off, or somebody's own
            continue
        meta = values.get("meta") if isinstance(values, dict) else None
        if isinstance(meta, dict) and meta.get("app") == APP:
            found[path] = values
    return found


def _paths_of(ours: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The files of atlases, JSON before its picture: a reader finds no JSON without one."""
    paths = []
    for path, values in ours.items():
        image = str(values["meta"].get("image", ""))
        paths += [path, *([f"{ATLAS_FOLDER}/{image}"] if image and "/" not in image and ".." not in image else [])]
    return paths


def _seen_before(ours: Mapping[str, Mapping[str, Any]]) -> dict[str, Seen]:
    """What earlier atlases tell of sprites, by the checksum of their file."""
    known: dict[str, Seen] = {}
    for values in ours.values():
        frames = values.get("frames")
        for frame in frames.values() if isinstance(frames, dict) else ():
            try:
                source = frame["source"]
                numbers = [*source["seen"], *source["size"]]
                if len(numbers) == 6 and all(type(one) is int and 0 <= one <= _MAX_SIDE for one in numbers):
                    known[str(source["sha256"])] = Seen(*numbers[:4], (numbers[4], numbers[5]))
            except (KeyError, TypeError):
                continue
    return known
