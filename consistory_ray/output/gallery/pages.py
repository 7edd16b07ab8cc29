"""The gallery: static pages that show every subject's pictures in one row, from the index alone.

``gallery/index.html`` works from a disk without a network, and from any static web server or bucket. Pictures too big
for a page get thumbnails, named by the picture's content, so that building again makes only what is new. Where that
would be thousands, an even share of each subject is shown and the rest is linked, so that the end of a large run does
not read all of it once more.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.errors import InputError
from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.output.assets import MASK_ENDING, mask_path
from consistory_ray.output.decisions import Standing
from consistory_ray.output.files import bounded_map
from consistory_ray.output.gallery.rows import (
    Choice,
    Listing,
    Share,
    choose,
    decided_words,
    read_listing,
    share_of,
    shown_counts,
    wanted_thumbnails,
)
from consistory_ray.output.gallery.thumbnails import THUMBNAIL_FOLDER, make_thumbnail, needs_thumbnail, thumbnail_path
from consistory_ray.output.lease.fencing import delete_all
from consistory_ray.output.run_record import RunRecord, read_run_record
from consistory_ray.output.scores import EVALUATION_PAGE, read_scores, scores_of
from consistory_ray.output.storage import Output, OutputStore, as_store
from consistory_ray.plan.inputs import INPUT_FOLDER

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset

GALLERY_FOLDER = "gallery"
GALLERY_PAGE = f"{GALLERY_FOLDER}/index.html"
MAX_THUMBNAILS = 2000
"""So many thumbnails are made for one gallery unless someone asks for more."""
_LISTED_EVERYWHERE = 2000
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Card:
    """One picture, or one failure, as a page shows it; addresses are relative to the gallery's folder.

    ``rejected`` is what a check of the job did; ``decided`` what people have, as kinds and words.
    """

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
    mask: str | None = None
    hints: tuple[str, ...] = ()
    profile: str | None = None
    score: float | None = None
    rejected: bool = False
    take: int = 1
    decided: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> str:
        """What the filter box looks through."""
        take = f"take {self.take}" if self.take > 1 else ""
        return f"{self.subject} {self.scene} {take} {self.prompt} {'failed' if self.error else ''}".lower()


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """A subject's cards, anchors first, and what is left out.

    Attributes:
        cards: what is shown.
        links: names and addresses of further pictures.
        more, more_failures: how many pictures and failures are neither shown nor linked.
    """

    subject: str
    cards: tuple[Card, ...]
    links: tuple[tuple[str, str], ...] = ()
    more: int = 0
    more_failures: int = 0

    @property
    def anchors(self) -> tuple[Card, ...]:
        """The anchor pictures."""
        return tuple(card for card in self.cards if card.kind == "anchor")

    @property
    def scenes(self) -> tuple[Card, ...]:
        """The scene pictures."""
        return tuple(card for card in self.cards if card.kind != "anchor")

    @property
    def count(self) -> int:
        """How many pictures and failures the subject has."""
        return len(self.cards) + len(self.links) + self.more + self.more_failures


def build_gallery(
    output: Output,
    assets: Iterable[Asset] | None = None,
    *,
    title: str | None = None,
    pictures_per_page: int = 1500,
    max_thumbnails: int | None = MAX_THUMBNAILS,
) -> str:
    """Write the gallery of what the index holds now, replacing an older one.

    Up to ``max_thumbnails`` new thumbnails (or 4 GB of pictures to make them of) and 30,000 pictures, everything is
    shown. Beyond that, an even share of each subject is, at least four pictures, anchors first; further ones are linked
    by name; and the pages say so. Memory is bounded by the index's columns and one page.

    Args:
        output: the output.
        assets: the plan's pictures: only these are shown, in this order, and those not made yet are counted. Without
            it everything in the index is shown, sorted by name.
        title: the headline; the run's name by default.
        pictures_per_page: a subject that begins on a page is shown there in full, so pages may be longer.
        max_thumbnails: how many thumbnails may be made; None shows everything, whatever it costs.

    Returns:
        The path of the first page below the output.

    Raises:
        StorageError: the storage failed, or the index cannot be read.
    """
    store = as_store(output)
    listing = read_listing(store, assets)
    there = {file.path for file in store.list_files(THUMBNAIL_FOLDER)}
    share = share_of(listing, there, max_thumbnails)
    pages = _paginate(shown_counts(listing, share), pictures_per_page)
    measured, scores = identity_scores(store, listing.table)
    previews = _Previews(store, there, share, scores, listing.stands)
    previews.make(
        row for page in pages for subject in page for row in listing.rows(choose(listing, subject, share).shown)
    )
    record = read_run_record(store)
    names = [_page_name(number) for number in range(1, len(pages) + 1)]
    broken = len(previews.broken)
    summary = {
        "title": title or (record.name if record else "Pictures"),
        "run": _run_facts(record),
        "pictures": int(listing.pictures.sum()) - broken,
        "failed": int(listing.failures.sum()) + broken,
        "pending": listing.pending,
        "subjects": len(listing.subjects),
        "shown": None if share.is_all else share.cards,
        "page_names": names,
        "measured": measured,
        "evaluation": f"../{EVALUATION_PAGE}" if measured and store.exists(EVALUATION_PAGE) else None,
    }
    elsewhere: list[tuple[str, str]] = []
    if len(pages) > 1:
        elsewhere = [(listing.subjects[subject], names[n]) for n, page in enumerate(pages) for subject in page]
    environment = page_environment()
    template = environment.get_template("gallery.html.j2")
    inlined = _inlined(environment)
    for number in reversed(range(1, len(pages) + 1)):  # the first page, which links to the others, last
        html = template.render(
            summary,
            rows=[previews.row(listing, subject, choose(listing, subject, share)) for subject in pages[number - 1]],
            page=number,
            elsewhere=elsewhere if number == 1 or len(elsewhere) <= _LISTED_EVERYWHERE else (),
            **inlined,
        )
        store.write_atomic(f"{GALLERY_FOLDER}/{names[number - 1]}", html.encode("utf-8", "replace"))
    kept = wanted_thumbnails(listing, previews.there)
    _remove_leftovers(store, kept | {f"{GALLERY_FOLDER}/{name}" for name in names})
    return GALLERY_PAGE


class _Previews:
    """What stands for each picture on a page: the picture itself, or a thumbnail.

    Attributes:
        there: paths of the thumbnails that there are.
        broken: why pictures cannot be shown, by asset id.
        scores: identity of the pictures that an evaluation has scored, by asset id.
    """

    def __init__(
        self,
        store: OutputStore,
        there: set[str],
        share: Share,
        scores: Mapping[str, float],
        stands: Mapping[str, Standing],
    ) -> None:
        self._store = store
        self._stands = stands
        self._share = share
        self.there = there
        self.broken: dict[str, str] = {}
        self.scores = scores
        self._inputs = {file.path.rpartition("/")[2][:64]: file.path for file in store.iter_files(INPUT_FOLDER)}
        self._masks = {file.path for file in store.iter_files("anchors") if file.path.endswith(MASK_ENDING)}

    def make(self, rows: Iterable[dict[str, Any]]) -> None:
        """Make the thumbnails that are missing, as many as may be, and see whether small pictures are there."""
        for row, problem in bounded_map(self._do, self._due(rows), _THREADS):
            if problem:
                self.broken[row["asset_id"]] = problem
                self.there.discard(thumbnail_path(row["sha256"]))

    def row(self, listing: Listing, subject: int, choice: Choice) -> SubjectRow:
        """A subject as a page shows it."""
        cards = tuple(self._card(row) for row in listing.rows(choice.shown))
        links = tuple((_name(row), f"../{quote(row['path'])}") for row in listing.rows(choice.linked))
        return SubjectRow(listing.subjects[subject], cards, links, choice.more, choice.more_failures)

    def _due(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        left = self._share.thumbnails
        for row in rows:
            if row["status"] != "ok":
                continue
            if not needs_thumbnail(row):
                if self._share.is_all:
                    yield row
            elif left and (path := thumbnail_path(row["sha256"])) not in self.there:
                left -= 1
                self.there.add(path)
                yield row

    def _do(self, row: dict[str, Any]) -> tuple[dict[str, Any], str]:
        try:
            self._store.join(row["path"])
        except InputError:
            return row, "its path leaves the output"
        if needs_thumbnail(row):
            return row, make_thumbnail(self._store, row)
        return row, "" if self._store.exists(row["path"]) else "the file is missing"

    def _card(self, row: Mapping[str, Any]) -> Card:
        error = row["error"] or self.broken.get(row["asset_id"])
        picture = thumbnail = None
        if row["status"] == "ok" and error is None:
            picture = f"../{quote(row['path'])}"
            made = thumbnail_path(row["sha256"])
            thumbnail = made.removeprefix(f"{GALLERY_FOLDER}/") if made in self.there else picture
        mask = mask_path(f"anchors/{row['subject']}/{row['scene']}.png") if row["kind"] == "anchor" else None
        shown = f"../{quote(mask)}" if mask in self._masks else None
        facts = ("asset_id", "kind", "subject", "scene", "prompt", "seed", "width", "height", "seconds", "profile")
        hints = tuple(
            f"../{quote(self._inputs[sha256])}" for sha256 in hints_of(row["control"]) if sha256 in self._inputs
        )
        own = {key: row[key] for key in facts}
        own["score"] = None if error is not None else self.scores.get(row["asset_id"])
        own["take"] = row["take"] or 1
        own["rejected"] = row["status"] == "rejected"
        own["decided"] = decided_words(row["asset_id"], self._stands.get(row["take_of"] or row["asset_id"]))
        return Card(**own, picture=picture, thumbnail=thumbnail, error=error, mask=shown, hints=hints)


def _name(row: Mapping[str, Any]) -> str:
    """What a picture is called where it is only linked."""
    take = row["take"] or 1
    return f"{row['scene']} (take {take})" if take > 1 else str(row["scene"])


def identity_scores(store: OutputStore, rows: pa.Table) -> tuple[str, dict[str, float]]:
    """What a gallery sorts by where there was an evaluation: the metric's name, and its values by asset id.

    It is the first one of those that say how near a picture is to its subject's anchors; empty where there is none.
    """
    table = read_scores(store)[0]
    names = sorted(name for name in pc.unique(table["metric"]).to_pylist() if name.endswith("_identity"))
    if not names:
        return "", {}
    found = scores_of(table, rows, names[:1])
    return names[0], {asset_id: values[names[0]] for asset_id, values in found.items()}


def hints_of(control: str | None) -> list[str]:
    """The SHA-256 of each hint that a row tells of; none where what it says is no such list."""
    try:
        told = parse_json((control or "[]").encode(), Limits(depth=4))
        return [str(hint["sha256"]) for hint in told]
    except (ValueError, TypeError, KeyError):
        return []


def _paginate(counts: Sequence[int], pictures_per_page: int) -> list[list[int]]:
    """Numbers of the subjects on each page."""
    pages: list[list[int]] = [[]]
    on_page = 0
    for subject, count in enumerate(counts):
        if on_page and on_page + count > pictures_per_page:
            pages.append([])
            on_page = 0
        pages[-1].append(subject)
        on_page += count
    return pages


def _page_name(number: int) -> str:
    return "index.html" if number == 1 else f"page-{number}.html"


def _run_facts(record: RunRecord | None) -> dict[str, str]:
    if record is None:
        return {}
    facts = {"state": record.state, "model": record.model}
    ended = record.finished_at or record.updated_at
    return facts | {"when": ended.replace("T", " ").removesuffix("+00:00").removesuffix("Z")[:16]}


def _remove_leftovers(store: OutputStore, kept: Collection[str]) -> None:
    """Delete pages of earlier galleries, and thumbnails of pictures that are no longer there."""

    def leftovers() -> Iterator[str]:
        for file in store.list_files(GALLERY_FOLDER):
            is_page = re.fullmatch(rf"{GALLERY_FOLDER}/page-\d+\.html", file.path)
            if file.path not in kept and (is_page or file.path.startswith(f"{THUMBNAIL_FOLDER}/")):
                yield file.path

    delete_all(store, leftovers())


def page_environment() -> jinja2.Environment:
    """Where the templates of pages are."""
    loader = jinja2.PackageLoader("consistory_ray.output.gallery", "templates")
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
