"""The gallery: static pages that show every subject's pictures in one row, from the index alone.

``gallery/index.html`` works from a disk without a network, and from any static web server or bucket. Pictures too big
for a page get thumbnails, named by the picture's content, so that building again makes only what is new.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from PIL import Image

from consistory_ray.output.index import Output, current_index, read_index
from consistory_ray.output.run_record import RunRecord, read_run_record
from consistory_ray.output.storage import MissingFileError, OutputStore, as_store

if TYPE_CHECKING:
    from consistory_ray.plan import Asset

GALLERY_FOLDER = "gallery"
GALLERY_PAGE = f"{GALLERY_FOLDER}/index.html"
THUMBNAIL_PIXELS = 448
_SMALL_BYTES = 150_000  # pictures up to this size and THUMBNAIL_PIXELS are shown as they are
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Card:
    """One picture, or one failure, as a page shows it; addresses are relative to the gallery's folder."""

    asset_id: str
    kind: str
    subject: str
    scene: str
    prompt: str
    seed: int
    width: int | None
    height: int | None
    seconds: float | None
    picture: str | None
    thumbnail: str | None
    error: str | None

    @property
    def words(self) -> str:
        """What the filter box looks through."""
        return f"{self.subject} {self.scene} {self.prompt} {'failed' if self.error else ''}".lower()


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """A subject's cards, anchors first, and the address of the page it is on."""

    subject: str
    cards: tuple[Card, ...]
    page: str

    @property
    def anchors(self) -> tuple[Card, ...]:
        """The anchor pictures."""
        return tuple(card for card in self.cards if card.kind == "anchor")

    @property
    def scenes(self) -> tuple[Card, ...]:
        """The scene pictures."""
        return tuple(card for card in self.cards if card.kind != "anchor")


def build_gallery(
    output: Output,
    assets: Iterable[Asset] | None = None,
    *,
    title: str | None = None,
    pictures_per_page: int = 1500,
) -> str:
    """Write the gallery of what the index holds now, replacing an older one.

    Args:
        output: the output.
        assets: the plan's pictures: only these are shown, in this order, and those not made yet are counted. Without
            it everything in the index is shown, sorted by name.
        title: the headline; the run's name by default.
        pictures_per_page: a subject that begins on a page is shown there in full, so pages may be longer.

    Returns:
        The path of the first page below the output.

    Raises:
        StorageError: the storage failed, or the index cannot be read.
    """
    store = as_store(output)
    cards, pending = _cards(store, assets)
    pages = _paginate(cards, pictures_per_page)
    record = read_run_record(store)
    summary = {
        "title": title or (record.name if record else "Pictures"),
        "run": _run_facts(record),
        "pictures": sum(card.error is None for card in cards),
        "failed": sum(card.error is not None for card in cards),
        "pending": pending,
        "subjects": sum(map(len, pages)),
    }
    elsewhere = {row.subject: row.page for page in pages for row in page} if len(pages) > 1 else {}
    environment = _environment()
    template = environment.get_template("gallery.html.j2")
    written = set()
    for number in reversed(range(1, len(pages) + 1)):  # the first page, which links to the others, last
        name = _page_name(number)
        html = template.render(
            summary,
            rows=pages[number - 1],
            page=number,
            page_names=[_page_name(i) for i in range(1, len(pages) + 1)],
            elsewhere=elsewhere,
            **_inlined(environment),
        )
        store.write_atomic(f"{GALLERY_FOLDER}/{name}", html.encode("utf-8", "replace"))
        written.add(f"{GALLERY_FOLDER}/{name}")
    _remove_leftovers(store, cards, written)
    return GALLERY_PAGE


def _cards(store: OutputStore, assets: Iterable[Asset] | None) -> tuple[list[Card], int]:
    """The cards in page order, and how many planned pictures have no row yet."""
    if assets is None:
        rows = read_index(store).to_pylist()
        rows.sort(key=lambda row: (_natural(row["subject"]), row["kind"], _natural(row["scene"])))
        pending = 0
    else:
        order = {asset.asset_id: place for place, asset in enumerate(assets)}
        rows = current_index(store, order).to_pylist()
        rows.sort(key=lambda row: order[row["asset_id"]])
        pending = len(order) - len(rows)
    thumbnails = {file.path for file in store.list_files(f"{GALLERY_FOLDER}/thumbnails")}
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda row: _card(store, row, thumbnails), rows)), pending


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which scene-2 comes before scene-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _card(store: OutputStore, row: Mapping[str, Any], thumbnails: set[str]) -> Card:
    picture = thumbnail = None
    error = row["error"]
    if row["status"] == "ok":
        picture = f"../{quote(row['path'])}"
        thumbnail, error = _thumbnail(store, row, thumbnails)
    facts = {key: row[key] for key in ("asset_id", "kind", "subject", "scene", "prompt", "seed", "seconds")}
    return Card(
        **facts,
        width=row["width"],
        height=row["height"],
        picture=picture if error is None else None,
        thumbnail=thumbnail,
        error=error,
    )


def _thumbnail(store: OutputStore, row: Mapping[str, Any], existing: set[str]) -> tuple[str | None, str | None]:
    """The address of the picture's thumbnail, made if it is new, or why there is none."""
    path = _thumbnail_path(row["sha256"])
    if path in existing:
        return path.removeprefix(f"{GALLERY_FOLDER}/"), None
    small = max(row["width"], row["height"]) <= THUMBNAIL_PIXELS and row["size"] <= _SMALL_BYTES
    try:
        if small:
            return (f"../{quote(row['path'])}", None) if store.exists(row["path"]) else (None, "the file is missing")
        with Image.open(io.BytesIO(store.read(row["path"]))) as image:
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=82, method=4)
    except MissingFileError:
        return None, "the file is missing"
    except (OSError, ValueError, SyntaxError) as error:
        return None, f"the file cannot be decoded: {error}"
    store.write_atomic(path, buffer.getvalue())
    return path.removeprefix(f"{GALLERY_FOLDER}/"), None


def _thumbnail_path(sha256: str) -> str:
    return f"{GALLERY_FOLDER}/thumbnails/{sha256[:32]}.webp"


def _paginate(cards: Sequence[Card], pictures_per_page: int) -> list[list[SubjectRow]]:
    by_subject: dict[str, list[Card]] = {}
    for card in cards:
        by_subject.setdefault(card.subject, []).append(card)
    pages: list[list[SubjectRow]] = [[]]
    on_page = 0
    for subject, own in by_subject.items():
        if on_page and on_page + len(own) > pictures_per_page:
            pages.append([])
            on_page = 0
        pages[-1].append(SubjectRow(subject, tuple(own), _page_name(len(pages))))
        on_page += len(own)
    return pages


def _page_name(number: int) -> str:
    return "index.html" if number == 1 else f"page-{number}.html"


def _run_facts(record: RunRecord | None) -> dict[str, str]:
    if record is None:
        return {}
    facts = {"state": record.state, "model": record.model}
    ended = record.finished_at or record.updated_at
    return facts | {"when": ended.replace("T", " ").removesuffix("+00:00").removesuffix("Z")[:16]}


def _remove_leftovers(store: OutputStore, cards: Iterable[Card], pages: set[str]) -> None:
    """Delete pages and thumbnails of earlier galleries that nothing links to any more."""
    thumbnails = {f"{GALLERY_FOLDER}/{card.thumbnail}" for card in cards if card.thumbnail}
    for file in store.list_files(GALLERY_FOLDER):
        old_page = re.fullmatch(rf"{GALLERY_FOLDER}/page-\d+\.html", file.path) and file.path not in pages
        old_thumbnail = file.path.startswith(f"{GALLERY_FOLDER}/thumbnails/") and file.path not in thumbnails
        if old_page or old_thumbnail:
            store.delete(file.path)


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("consistory_ray.output", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = _duration
    return environment


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _inlined(environment: jinja2.Environment) -> dict[str, str]:
    """Style and script for the page, with the script's hash: the page allows this one script and no other."""
    style, script = (environment.get_template(name).render() for name in ("gallery.css", "gallery.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": style, "script": script, "script_hash": f"sha256-{digest}"}
