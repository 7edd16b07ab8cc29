"""The pictures of an index, scene by scene: columns of Arrow and numpy, and Python objects for what is shown alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.gallery.pages import identity_scores
from consistory_ray.output.gallery.rows import by_name
from consistory_ray.output.index.parts import list_parts, read_parts
from consistory_ray.output.index.rows import latest_rows
from consistory_ray.output.index.takes import picture_ids
from consistory_ray.output.storage import OutputStore

_COLUMNS = (
    *("asset_id", "kind", "subject", "scene", "prompt", "seed", "path", "size", "sha256", "width", "height"),
    *("attempt", "status", "error", "fault", "take", "take_of", "score", "scored_by", "created_at"),
)

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]


class Catalogue:
    """All takes of all scenes, and the anchors, as the index had them once. Nothing in it changes.

    Args:
        table: one row for each asset, at least the columns of a review.
        planned: ids of the plan's scenes in its order: others, of earlier versions of the job, are left out. None
            shows everything, by name.
        scores: of an evaluation, by asset id; used where the index has none.
        measure: what those are.

    Attributes:
        table: the scenes' rows, those of one scene next to each other, in the order of the scenes.
        pictures: the scenes' picture ids; row numbers of scene ``n`` are ``starts[n]`` to ``starts[n + 1]``.
        ok, score, take: of each row; the score is NaN where there is none.
        best: of each scene the row that is its picture where nobody has decided.
        made: of each scene how many takes are there.
        measure: what the scores are; empty where there is none.
    """

    def __init__(
        self,
        table: pa.Table,
        planned: Sequence[str] | None = None,
        scores: dict[str, float] | None = None,
        measure: str = "",
    ) -> None:
        is_scene = pc.equal(table["kind"], "scene")
        self._anchors = table.filter(pc.invert(is_scene))
        scenes = table.filter(is_scene)
        if planned is None:
            scenes = scenes.take(pa.array(by_name(scenes), pa.int64()))
        else:
            place = pc.index_in(picture_ids(scenes), value_set=pa.array(planned, pa.string()))
            there = pc.is_valid(place)
            scenes = scenes.filter(there).take(pc.sort_indices(place.filter(there)))
        encoded = picture_ids(scenes).combine_chunks().dictionary_encode()  # numbered as they come
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        takes = pc.fill_null(scenes["take"], 1).to_numpy()
        self.table = scenes.take(pa.array(np.lexsort((takes, codes)))).combine_chunks()
        self.pictures: list[str] = encoded.dictionary.to_pylist()
        counts = np.bincount(codes, minlength=len(self.pictures))
        self.starts: Numbers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._places = {picture: place for place, picture in enumerate(self.pictures)}
        self.ok: Booleans = pc.equal(self.table["status"], "ok").to_numpy()
        self.take: Numbers = pc.fill_null(self.table["take"], 1).to_numpy().astype(np.int64)
        own = self.table["score"]
        self.measure = measure
        if own.null_count < len(own):
            self.measure = next(filter(None, pc.unique(self.table["scored_by"]).to_pylist()), "score")
        elif scores:
            own = pa.array([scores.get(asset_id) for asset_id in self.table["asset_id"].to_pylist()], pa.float64())
        self.score: Floats = pc.fill_null(own, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
        self.best = self._best()
        self.made: Numbers = np.add.reduceat(self.ok, self.starts[:-1], dtype=np.int64) if self.pictures else counts

    def _best(self) -> Numbers:
        """As :func:`~consistory_ray.output.decisions.decided_rows` chooses where nobody has decided."""
        codes = np.repeat(np.arange(len(self.pictures)), np.diff(self.starts))
        worth = np.where(np.isnan(self.score), -np.inf, self.score)
        order = np.lexsort((self.take, -worth, ~self.ok, codes))
        return order[self.starts[:-1]] if len(order) else order

    def __len__(self) -> int:
        return len(self.pictures)

    def place(self, picture: str) -> int | None:
        """The number of a scene."""
        return self._places.get(picture)

    def rows(self, place: int) -> range:
        """The row numbers of a scene's takes."""
        return range(int(self.starts[place]), int(self.starts[place + 1]))

    def facts(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Some rows of :attr:`table` as dictionaries."""
        found: list[dict[str, Any]] = self.table.take(pa.array(rows, pa.int64())).to_pylist()
        return found

    def anchors(self, subject: str) -> list[dict[str, Any]]:
        """The anchors of a subject that are there."""
        own = pc.and_(pc.equal(self._anchors["subject"], subject), pc.equal(self._anchors["status"], "ok"))
        found: list[dict[str, Any]] = self._anchors.filter(own).to_pylist()
        return found

    def asset(self, asset_id: str) -> dict[str, Any] | None:
        """The row of a take or an anchor that is there; None for whatever else anybody asks for."""
        for table in (self.table, self._anchors):
            place = pc.index(table["asset_id"], asset_id).as_py()
            if place >= 0 and table["status"][place].as_py() == "ok":
                found: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
                return found
        return None


def read_catalogue(store: OutputStore, planned: Sequence[str] | None = None) -> Catalogue:
    """The catalogue of an output as it is now.

    Raises:
        CorruptIndexError, InputError, StorageError: the index cannot be read.
    """
    table = latest_rows(read_parts(store, _COLUMNS)[0])
    measure, scores = identity_scores(store, table)
    return Catalogue(table, planned, scores, measure)


def index_state(store: OutputStore) -> Collection[str]:
    """What tells whether the index is still the same: the names of its parts, which are hashes of their content."""
    return frozenset(list_parts(store))
