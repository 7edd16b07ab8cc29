"""Where every scene of a catalogue stands, in columns: what filters look through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.decisions import Standing
from consistory_ray.review.catalogue import Booleans, Catalogue, Numbers
from consistory_ray.review.query import STATES, Query

UNDECIDED, PICKED, REJECTED, REROLL, FAILED = range(len(STATES))


class Sheet:
    """A catalogue with the state of each scene beside it.

    Args:
        catalogue: of the scenes.

    Attributes:
        state: of each scene, a number of :data:`~consistory_ray.review.query.STATES`.
        shown: the row that stands for it: the picked take, else the best one that was not rejected.
        noted: whether somebody left a note.
        subjects: their names, of each scene.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        first = pa.array(catalogue.starts[:-1])
        texts = [catalogue.table[name].take(first) for name in ("subject", "scene", "prompt")]
        self._words = pc.utf8_lower(pc.binary_join_element_wise(*texts, " "))
        self.subjects, self._scenes = texts[0].combine_chunks(), texts[1]
        self.state = np.where(catalogue.made > 0, UNDECIDED, FAILED).astype(np.int8)
        self.shown: Numbers = catalogue.best.copy()
        self.noted: Booleans = np.zeros(len(catalogue), np.bool_)
        self._ids = catalogue.table["asset_id"]

    def settle(self, picture: str, stands: Standing | None) -> None:
        """Take down where a scene stands after what was decided about it."""
        catalogue = self.catalogue
        place = catalogue.place(picture)
        if place is None:
            return
        rows = catalogue.rows(place)
        self.shown[place] = catalogue.best[place]
        self.state[place] = UNDECIDED if catalogue.made[place] else FAILED
        self.noted[place] = bool(stands and stands.notes)
        if stands is None:
            return
        ids = self._ids.slice(rows.start, len(rows)).to_pylist()
        there = {asset_id: row for asset_id, row in zip(ids, rows, strict=True) if catalogue.ok[row]}
        kept = [row for asset_id, row in there.items() if asset_id not in stands.rejected]
        if kept:
            self.shown[place] = min(kept, key=lambda row: (-np.nan_to_num(catalogue.score[row], nan=-np.inf), row))
        if stands.picked in there:
            self.shown[place], self.state[place] = there[stands.picked], PICKED
        elif stands.wanted_takes.difference(catalogue.take[row] for row in rows):
            self.state[place] = REROLL
        elif there and not kept:
            self.state[place] = REJECTED

    def find(self, query: Query) -> list[str]:
        """The scenes that a filter lets through, in its order, by picture id."""
        places = np.flatnonzero(self._matching(query))
        shown = self.shown[places]
        if query.sort in ("worst", "best"):
            score = self.catalogue.score[shown]
            places = places[np.argsort(score if query.sort == "worst" else -score, kind="stable")]  # NaN is last
        elif query.sort == "newest":
            made = self.catalogue.table["created_at"].take(pa.array(shown)).cast(pa.int64()).to_numpy()
            places = places[np.argsort(-made, kind="stable")]
        return [self.catalogue.pictures[place] for place in places]

    @property
    def choosable(self) -> Booleans:
        """Which scenes have two or more takes, and nobody has decided."""
        found: Booleans = (self.catalogue.made > 1) & (self.state == UNDECIDED)
        return found

    def faults(self) -> Any:
        """Of each row what went wrong, if something did: the kind of failure, or that a check rejected it."""
        return pc.coalesce(self.catalogue.table["fault"], self.catalogue.table["status"])

    def _matching(self, query: Query) -> Booleans:
        keep = np.ones(len(self.catalogue), np.bool_)
        for word in query.words.lower().split():
            keep &= _numpy(pc.match_substring(self._words, word))
        if query.subject:
            keep &= _numpy(pc.equal(self.subjects, query.subject))
        if query.scene:
            keep &= _numpy(pc.match_substring(self._scenes, query.scene, ignore_case=True))
        if query.only == "takes":
            keep &= self.choosable
        elif query.only == "notes":
            keep &= self.noted
        elif query.only:
            keep &= self.state == STATES.index(query.only)
        if query.fault:
            hit = _numpy(pc.equal(self.faults(), query.fault)) & ~self.catalogue.ok
            codes = np.repeat(np.arange(len(self.catalogue)), np.diff(self.catalogue.starts))
            keep &= np.bincount(codes[hit], minlength=len(self.catalogue)) > 0
        if query.low is not None or query.high is not None:
            score = self.catalogue.score[self.shown]
            low, high = (-np.inf if query.low is None else query.low), (np.inf if query.high is None else query.high)
            keep &= (score >= low) & (score <= high)  # NaN is neither
        return keep


def _numpy(mask: Any) -> Booleans:
    found: Booleans = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return found
