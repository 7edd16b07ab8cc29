"""The files of atlases in an export's folder; pages that are there already are not drawn again.

    atlas/moss-dragon.json, atlas/moss-dragon.png       first page, of this name however many there are
    atlas/moss-dragon~2.json, atlas/moss-dragon~2.png   further ones; no id has a ~

A page's JSON says with a key what its picture depends on, and keeps where in each sprite's file there is something to
see: from the same sprites and rules the same files follow without decoding one sprite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError

ATLAS_FOLDER = "atlas"
Per = Literal["subject", "all"]
ALL = "all"
"""The name of an atlas of all subjects."""
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


def atlas_files(
    store: OutputStore,
    atlases: Mapping[str, Sequence[Sprite]],
    rules: AtlasRules | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, bytes]]:
    """The files of the atlases of an export's sprites: names below its folder, and bytes, a page before its JSON.

    All sprites are measured, and every page laid out, before the first file. At most one page and a few sprites are in
    memory at a time. A page that is there, of the same sprites and rules, is read instead of drawn.

    Args:
        store: the export's folder.
        atlases: the sprites of each atlas by its name; names of frames are unique in an atlas.
        rules: how they are laid out.
        on_progress: is told how many of how many pages are made.
        should_stop: is asked before every page whether to stop.

    Raises:
        InputError: a sprite is larger than a page, or there can be no such pages.
        AssetError: a sprite cannot be decoded.
        RunInterrupted: it was stopped.
        StorageError: the storage failed.
    """
    rules = rules or AtlasRules()
    check_rules(rules.pages)
    ours = _written_before(store)
    laid = _laid_out(store, atlases, rules, _seen_before(ours))
    done, total = 0, sum(len(one.pages) for one in laid)
    for one in laid:
        for number in range(len(one.pages)):
            if should_stop():
                raise RunInterrupted(f"stopped with {done} of {total} pages of atlases; the same command goes on")
            yield from _page(store, one, number, rules, ours.get(one.path(number, "json"), {}).get("meta", {}))
            done += 1
            if on_progress is not None:
                on_progress(done, total)


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


def _page(
    store: OutputStore, laid: _Laid, number: int, rules: AtlasRules, before: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """A page's picture and its JSON.

    Args:
        store, rules: see :func:`atlas_files`.
        laid, number: which page, from 0.
        before: what the JSON in its place says of itself; empty where there is none.
    """
    page, path = laid.pages[number], laid.path(number, rules.format)
    key = laid.key(page, rules)
    data = _kept(store, path, before) if before.get("key") == key else None
    if data is None:
        images = bounded_map(lambda placed: _opened(store, laid.frames[placed.name].sprite), page.placed)
        data = encode_page(draw_page(page, laid.frames, images, rules.pages.extrude), rules.format)
    yield path, data
    frames = {placed.name: frame_json(laid.frames[placed.name], placed, rules.pivot) for placed in page.placed}
    others = [_name(laid.path(other, "json")) for other in range(len(laid.pages)) if other != number]
    made = {"key": key, "sha256": hashlib.sha256(data).hexdigest()}
    yield laid.path(number, "json"), page_json(frames, _name(path), page, others, made)


def _kept(store: OutputStore, path: str, before: Mapping[str, Any]) -> bytes | None:
    """A page's picture, if it is the one that its JSON speaks of."""
    try:
        data = store.read(path)
    except (MissingFileError, UnfitFileError):
        return None
    return data if hashlib.sha256(data).hexdigest() == before.get("sha256") else None


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _written_before(store: OutputStore) -> dict[str, dict[str, Any]]:
    """The JSON files of atlases that this package wrote, by path."""
    found: dict[str, dict[str, Any]] = {}
    paths = [file.path for file in store.list_files(ATLAS_FOLDER) if file.path.endswith(".json")]
    for path, data in zip(paths, bounded_map(store.read, paths), strict=True):
        try:
            values = parse_json(data, _LIMITS)
        except ValueError:  # cut off, or somebody's own
            continue
        meta = values.get("meta") if isinstance(values, dict) else None
        if isinstance(meta, dict) and meta.get("app") == APP:
            found[path] = values
    return found


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
                    x, y, width, height, *size = numbers
                    known[str(source["sha256"])] = Seen(x, y, width, height, (size[0], size[1]))
            except (KeyError, TypeError):
                continue
    return known
