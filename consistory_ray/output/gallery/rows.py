"""What a gallery shows of an index: all of a small one, an even share of each subject of a large one.

Rows stay in Arrow's columns, sorted and grouped by subject; Python objects are made for one page at a time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.decisions import Standing, decided_rows, read_decisions, standing
from consistory_ray.output.gallery.thumbnails import NAME_DIGITS, need_thumbnails, thumbnail_name
from consistory_ray.output.index.parts import read_parts
from consistory_ray.output.index.rows import latest_rows
from consistory_ray.output.index.takes import chosen_rows, picture_ids
from consistory_ray.output.storage import OutputStore

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset

MAX_THUMBNAIL_BYTES = 4_000_000_000
"""So much is read to make thumbnails, at most: about 2,000 pictures of 1024 x 1024 pixels."""
MAX_CARDS = 30_000
MAX_LINKS = 100_000
"""All pages together show so many pictures and link so many more, beyond the few that every subject gets."""
MIN_SHOWN = 4
"""Pictures of a subject that are shown however many subjects there are."""

_SHOWN = (
    "asset_id",
    "kind",
    "subject",
    "scene",
    "prompt",
    "seed",
    "width",
    "height",
    "seconds",
    "path",
    "size",
    "profile",
)
_TAKES = ("take", "take_of", "score")
_COLUMNS = (*_SHOWN, "sha256", "status", "error", "control", "attempt", "created_at", *_TAKES)

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Listing:
    """The rows of a gallery, in its order, subject after subject.

    Attributes:
        table: one row for each asset.
        subjects: their names, in order.
        starts: the first row of each subject, and the number of rows at the end.
        pictures, failures: how many of a subject's rows are ok, and how many are not.
        pending: how many planned pictures have no row yet.
        stands: what people have decided, by picture id.
    """

    table: pa.Table
    subjects: tuple[str, ...]
    starts: Numbers
    pictures: Numbers
    failures: Numbers
    pending: int
    stands: Mapping[str, Standing] = field(default_factory=dict)

    def rows(self, places: Collection[int] | Numbers) -> list[dict[str, Any]]:
        """Some rows as dictionaries."""
        found: list[dict[str, Any]] = self.table.take(pa.array(places, pa.int64())).to_pylist()
        return found


@dataclass(frozen=True)
class Share:
    """How much is shown of each subject.

    Attributes:
        cards: pictures, and as many failures.
        links: further pictures that are linked by their names.
        thumbnails: how many pictures may get a thumbnail, over all subjects; those after them are shown as they are.
        is_all: whether nothing is left out.
    """

    cards: int
    links: int
    thumbnails: int
    is_all: bool


@dataclass(frozen=True)
class Choice:
    """The rows of one subject that are shown, those that are linked, and how many of each kind are neither."""

    shown: Numbers
    linked: Numbers
    more: int
    more_failures: int


def read_listing(store: OutputStore, assets: Iterable[Asset] | None) -> Listing:
    """The rows that count: those of the plan's pictures in its order, or all, by name.

    Args:
        store: the output.
        assets: the plan's pictures; None for all. Of a scene all of whose takes were rejected, one is listed
            nevertheless.

    Raises:
        StorageError: the storage failed, or the index cannot be read.
    """
    everything = latest_rows(read_parts(store, _COLUMNS)[0])
    stands = _still_asked(everything, standing(read_decisions(store)[0]))
    table = _with_rejected(everything, stands)
    pending = 0
    if assets is None:
        table = table.take(pa.array(by_name(table), pa.int64()))
    else:
        table, pending = _of_plan(table, everything, list(assets))
    names = table["subject"].combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.argsort(codes, kind="stable")
    table, codes = table.take(pa.array(order)), codes[order]
    ok = pc.equal(table["status"], "ok").to_numpy()
    count = len(names.dictionary)
    pictures = np.bincount(codes[ok], minlength=count).astype(np.int64)
    failures = np.bincount(codes[~ok], minlength=count).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(pictures + failures)]).astype(np.int64)
    return Listing(table, tuple(names.dictionary.to_pylist()), starts, pictures, failures, pending, stands)


def _with_rejected(table: pa.Table, stands: Mapping[str, Standing]) -> pa.Table:
    """One row for each scene: its picture after what was decided, or where every take was rejected the best of them."""
    if not stands:
        return chosen_rows(table)
    pictures = decided_rows(table, stands)
    without = pc.invert(pc.is_in(picture_ids(table), value_set=pc.unique(picture_ids(pictures))))
    return pa.concat_tables([pictures, chosen_rows(table.filter(without))])


def _still_asked(table: pa.Table, stands: Mapping[str, Standing]) -> dict[str, Standing]:
    """What was decided, of the takes that were asked for those alone that are not there."""
    asked = pa.array([picture for picture, one in stands.items() if one.wanted_takes], pa.string())
    rows = table.filter(pc.and_(pc.is_in(picture_ids(table), value_set=asked), pc.equal(table["status"], "ok")))
    made: dict[str, set[int]] = {}
    for picture, take in zip(picture_ids(rows).to_pylist(), rows["take"].to_pylist(), strict=True):
        made.setdefault(picture, set()).add(take or 1)
    return {
        picture: replace(one, wanted_takes=one.wanted_takes.difference(made.get(picture, ())))
        for picture, one in stands.items()
    }


def decided_words(asset_id: str, stands: Standing | None) -> tuple[tuple[str, str], ...]:
    """What a card says of people's decisions: kinds and words."""
    if stands is None:
        return ()
    found = []
    if stands.picked == asset_id:
        found.append(("picked", "✓ picked"))
    if asset_id in stands.rejected:
        found.append(("turned-down", "✕ rejected"))
    if stands.wanted_takes:
        found.append(("asked", f"↻ take {', '.join(map(str, sorted(stands.wanted_takes)))} asked"))
    found += [("note", f"✎ {one.who}: {one.note}") for one in stands.notes]
    return tuple(found)


def _of_plan(chosen: pa.Table, everything: pa.Table, assets: Sequence[Asset]) -> tuple[pa.Table, int]:
    """The rows of planned pictures in the plan's order, takes of a scene side by side; and how many have no row yet.

    Of scenes of which several takes are made in any case all of those are shown, of others their pictures.
    """
    wanted = pa.array((asset.asset_id for asset in assets), pa.string())
    if takes := {one for asset in assets if asset.take_of for one in (asset.asset_id, asset.take_of)}:
        ids = pa.array(sorted(takes), pa.string())
        others = chosen.filter(pc.invert(pc.is_in(chosen["asset_id"], value_set=ids)))
        chosen = pa.concat_tables([others, everything.filter(pc.is_in(everything["asset_id"], value_set=ids))])
    place = pc.index_in(picture_ids(chosen), value_set=wanted)
    there = pc.is_valid(place)
    table, place = chosen.filter(there), place.filter(there)
    own = pc.coalesce(pc.index_in(table["asset_id"], value_set=wanted), place)
    keys = pa.table({"place": place, "take": pc.fill_null(table["take"], 1)})
    order = pc.sort_indices(keys, sort_keys=[("place", "ascending"), ("take", "ascending")])
    return table.take(order), len(wanted) - len(pc.unique(own))


def share_of(listing: Listing, thumbnails: Collection[str], limit: int | None) -> Share:
    """How much of each subject to show.

    Args:
        listing: all rows.
        thumbnails: paths of those that are there already, which cost nothing.
        limit: how many may be made; None for any number of them and of pictures.
    """
    rows, subjects = len(listing.table), max(1, len(listing.subjects))
    everything = Share(rows, 0, rows, is_all=True)
    if limit is None:
        return everything
    new, size = _new_thumbnails(listing.table, thumbnails)
    affordable = limit if not size else min(limit, new * MAX_THUMBNAIL_BYTES // size)
    if new <= affordable and rows <= MAX_CARDS:
        return everything
    budget = MAX_CARDS if new <= affordable else affordable
    cards = max(MIN_SHOWN, budget // subjects)
    return Share(cards, MAX_LINKS // subjects, min(new, affordable), is_all=False)


def choose(listing: Listing, subject: int, share: Share) -> Choice:
    """The rows of a subject that are shown: its first ones, anchors before scenes."""
    start, end = (int(place) for place in listing.starts[subject : subject + 2])
    ok = pc.equal(listing.table["status"].slice(start, end - start), "ok").to_numpy()
    pictures, failures = np.flatnonzero(ok) + start, np.flatnonzero(~ok) + start
    shown = np.sort(np.concatenate([pictures[: share.cards], failures[: share.cards]]))
    rest = pictures[share.cards :]
    linked = rest[: share.links]
    return Choice(shown, linked, len(rest) - len(linked), max(0, len(failures) - share.cards))


def shown_counts(listing: Listing, share: Share) -> list[int]:
    """How many cards each subject gets."""
    counts: Numbers = np.minimum(listing.pictures, share.cards) + np.minimum(listing.failures, share.cards)
    found: list[int] = counts.tolist()
    return found


def wanted_thumbnails(listing: Listing, there: Collection[str]) -> set[str]:
    """Those of some thumbnails whose pictures are listed, shown or not."""
    paths = sorted(there)
    names = pa.array([thumbnail_name(path) for path in paths], pa.string())
    wanted = pc.is_in(names, value_set=_names(listing.table)).to_pylist()
    return {path for path, is_wanted in zip(paths, wanted, strict=True) if is_wanted}


def _new_thumbnails(table: pa.Table, there: Collection[str]) -> tuple[int, int]:
    """How many pictures need a thumbnail that is not there, and their bytes."""
    large = table.select(["sha256", "size"]).filter(need_thumbnails(table))
    made = pc.is_in(_names(large), value_set=pa.array([thumbnail_name(path) for path in there], pa.string()))
    new = large.filter(pc.invert(made))
    return len(new), pc.sum(new["size"]).as_py() or 0


def _names(table: pa.Table) -> pa.ChunkedArray:
    return pc.utf8_slice_codeunits(table["sha256"], 0, NAME_DIGITS)


def by_name(table: pa.Table) -> list[int]:
    """Places of the rows sorted by subject, kind and scene, in the order in which people count."""
    places: dict[str, list[int]] = {}
    for place, subject in enumerate(table["subject"].to_pylist()):
        places.setdefault(subject, []).append(place)
    order: list[int] = []
    for subject in sorted(places, key=_natural):
        own = places[subject]
        kinds, scenes = (table[name].take(pa.array(own)).to_pylist() for name in ("kind", "scene"))
        keys = [(kind, _natural(scene)) for kind, scene in zip(kinds, scenes, strict=True)]
        order += [own[number] for number in sorted(range(len(own)), key=keys.__getitem__)]
    return order


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which scene-2 comes before scene-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
