"""Where every scene stands after what was decided, and what the page is told of it. Used from several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.decisions import Decision, Standing, next_take, standing
from consistory_ray.review.catalogue import Booleans, Catalogue, Numbers
from consistory_ray.review.query import STATES, Query

UNDECIDED, PICKED, REJECTED, REROLL, FAILED = range(len(STATES))
_REMEMBERED = 5000
_MOST_SUBJECTS = 200
_SHORT_ERROR = 300


class Board:
    """The catalogue with everybody's decisions on it.

    Attributes:
        version: goes up with every change.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._lock = threading.RLock()
        self._every: dict[str, dict[str, Decision]] = {}
        self._stands: dict[str, Standing] = {}
        self._changes: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)
        self._oldest = 0
        self.version = 0
        self.show(catalogue)

    @property
    def catalogue(self) -> Catalogue:
        """What is shown now."""
        return self._catalogue

    def show(self, catalogue: Catalogue) -> None:
        """The index was read anew."""
        with self._lock:
            self._catalogue = catalogue
            first = catalogue.starts[:-1]
            texts = [catalogue.table[name].take(pa.array(first)) for name in ("subject", "scene", "prompt")]
            self._words = pc.utf8_lower(pc.binary_join_element_wise(*texts, " "))
            self._subjects, self._scenes = texts[:2]
            self._state = np.where(catalogue.made > 0, UNDECIDED, FAILED).astype(np.int8)
            self._shown = catalogue.best.copy()
            self._noted = np.zeros(len(catalogue), np.bool_)
            for picture in self._stands:
                self._settle(picture)
            self.version += 1
            self._changes.clear()
            self._oldest = self.version

    def take_in(self, decisions: Iterable[Decision]) -> int:
        """Decisions were made, here or elsewhere; those that are known already change nothing. Returns the version."""
        with self._lock:
            touched = {}
            for one in decisions:
                own = self._every.setdefault(one.picture_id, {})
                if one.decision_id not in own:
                    own[one.decision_id] = one
                    touched[one.picture_id] = own
            for picture, own in touched.items():
                self._stands.pop(picture, None)
                self._stands.update(standing(own.values()))
                self._settle(picture)
                self.version += 1
                self._changes.append((self.version, picture))
                if len(self._changes) == _REMEMBERED:
                    self._oldest = self._changes[0][0]
            return self.version

    def changed_since(self, version: int) -> list[dict[str, Any]] | None:
        """The scenes that changed after a version, as they are now; None when everything has to be asked for again."""
        with self._lock:
            if version < self._oldest or version > self.version:
                return None
            pictures = dict.fromkeys(picture for number, picture in self._changes if number > version)
            return self.items(pictures)

    def stands(self, picture: str) -> Standing | None:
        """What was decided about a scene."""
        return self._stands.get(picture)

    def decision(self, picture: str, decision_id: str) -> Decision | None:
        """A decision about a scene, whether it still counts or not."""
        return self._every.get(picture, {}).get(decision_id)

    def newest(self, picture: str) -> Decision | None:
        """The last decision about a scene by the clock, whether it counts or not."""
        return max(self._every.get(picture, {}).values(), key=lambda one: one.at, default=None)

    def find(self, query: Query) -> list[str]:
        """The scenes that a filter lets through, in its order, by picture id."""
        with self._lock:
            places = np.flatnonzero(self._matching(query))
            shown = self._shown[places]
            if query.sort in ("worst", "best"):
                score = self._catalogue.score[shown]
                places = places[np.argsort(score if query.sort == "worst" else -score, kind="stable")]  # NaN is last
            elif query.sort == "newest":
                made = self._catalogue.table["created_at"].take(pa.array(shown)).cast(pa.int64()).to_numpy()
                places = places[np.argsort(-made, kind="stable")]
            return [self._catalogue.pictures[place] for place in places]

    def items(self, pictures: Iterable[str]) -> list[dict[str, Any]]:
        """What a card shows of some scenes; one that is not in the index any more is left out."""
        with self._lock:
            places = [place for picture in pictures if (place := self._catalogue.place(picture)) is not None]
            facts = self._catalogue.facts([int(self._shown[place]) for place in places])
            return [self._item(place, row) for place, row in zip(places, facts, strict=True)]

    def whole(self, picture: str) -> dict[str, Any] | None:
        """Everything about a scene: its takes, the anchors of its subject, and what was decided."""
        with self._lock:
            place = self._catalogue.place(picture)
            if place is None:
                return None
            rows = self._catalogue.facts(self._catalogue.rows(place))
            scores = self._catalogue.score[self._catalogue.starts[place] : self._catalogue.starts[place + 1]]
            stands = self._stands.get(picture)
            takes = [self._take(row, score, stands) for row, score in zip(rows, scores.tolist(), strict=True)]
            every = sorted(self._every.get(picture, {}).values(), key=lambda one: (one.at, one.decision_id))
            undone = {one.undoes for one in every}
            return {
                **self._item(place, self._catalogue.facts([int(self._shown[place])])[0]),
                "all_takes": takes,
                "anchors": [self._take(row, float("nan"), None) for row in self._catalogue.anchors(rows[0]["subject"])],
                "history": [told(one) | {"undone": one.decision_id in undone} for one in every],
            }

    def counts(self) -> dict[str, int]:
        """How many scenes stand where."""
        with self._lock:
            found = dict(zip(STATES, np.bincount(self._state, minlength=len(STATES)).tolist(), strict=True))
            choosable = (self._catalogue.made > 1) & (self._state == UNDECIDED)
            return found | {"all": len(self._state), "takes": int(choosable.sum()), "notes": int(self._noted.sum())}

    def facets(self, like: str) -> dict[str, Any]:
        """What filters can choose from.

        Args:
            like: a part of the subjects' names that are listed, the first 200 of them.
        """
        with self._lock:
            names = self._subjects.combine_chunks() if isinstance(self._subjects, pa.ChunkedArray) else self._subjects
            encoded = names.dictionary_encode()
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            every = np.bincount(codes, minlength=len(encoded.dictionary)).tolist()
            left = np.bincount(codes[self._state == UNDECIDED], minlength=len(encoded.dictionary)).tolist()
            rows = zip(encoded.dictionary.to_pylist(), every, left, strict=True)
            subjects = [row for row in rows if like.lower() in row[0].lower()]
            score = self._catalogue.score[self._catalogue.ok]
            known = score[~np.isnan(score)]
            return {
                "subjects": [
                    {"name": name, "all": n, "undecided": open_} for name, n, open_ in subjects[:_MOST_SUBJECTS]
                ],
                "more_subjects": max(0, len(subjects) - _MOST_SUBJECTS),
                "faults": self._faults(),
                "measure": self._catalogue.measure,
                "scores": [float(known.min()), float(known.max())] if len(known) else None,
                "takes": bool((self._catalogue.made > 1).any()),
            }

    def next_take(self, picture: str) -> int:
        """The number of the take that is asked for next."""
        place = self._catalogue.place(picture)
        takes = [] if place is None else [int(self._catalogue.take[row]) for row in self._catalogue.rows(place)]
        return next_take(takes, self._stands.get(picture))

    def _faults(self) -> list[dict[str, Any]]:
        table = self._catalogue.table
        told_ = pc.value_counts(self._fault_names().filter(pa.array(~self._catalogue.ok))) if len(table) else []
        return [{"name": one["values"].as_py(), "all": one["counts"].as_py()} for one in told_]

    def _fault_names(self) -> Any:
        """Of each row what went wrong: the kind of failure, or that a check rejected it."""
        return pc.coalesce(self._catalogue.table["fault"], self._catalogue.table["status"])

    def _matching(self, query: Query) -> Booleans:
        keep = np.ones(len(self._catalogue), np.bool_)
        for word in query.words.lower().split():
            keep &= _numpy(pc.match_substring(self._words, word))
        if query.subject:
            keep &= _numpy(pc.equal(self._subjects, query.subject))
        if query.scene:
            keep &= _numpy(pc.match_substring(self._scenes, query.scene, ignore_case=True))
        if query.only == "takes":
            keep &= (self._catalogue.made > 1) & (self._state == UNDECIDED)
        elif query.only == "notes":
            keep &= self._noted
        elif query.only:
            keep &= self._state == STATES.index(query.only)
        if query.fault:
            hit = _numpy(pc.equal(self._fault_names(), query.fault)) & ~self._catalogue.ok
            codes = np.repeat(np.arange(len(self._catalogue)), np.diff(self._catalogue.starts))
            keep &= np.bincount(codes[hit], minlength=len(self._catalogue)) > 0
        if query.low is not None or query.high is not None:
            score = self._catalogue.score[self._shown]
            low, high = (-np.inf if query.low is None else query.low), (np.inf if query.high is None else query.high)
            keep &= (score >= low) & (score <= high)  # NaN is neither
        return keep

    def _settle(self, picture: str) -> None:
        """State and shown take of a scene after what was decided about it."""
        catalogue, stands = self._catalogue, self._stands.get(picture)
        place = catalogue.place(picture)
        if place is None:
            return
        rows = catalogue.rows(place)
        self._shown[place] = catalogue.best[place]
        self._state[place] = UNDECIDED if catalogue.made[place] else FAILED
        self._noted[place] = bool(stands and stands.notes)
        if stands is None:
            return
        ids = catalogue.table["asset_id"].slice(rows.start, len(rows)).to_pylist()
        there = {asset_id: row for asset_id, row in zip(ids, rows, strict=True) if catalogue.ok[row]}
        kept = [row for asset_id, row in there.items() if asset_id not in stands.rejected]
        if kept:
            self._shown[place] = _best(catalogue, kept)
        if stands.picked in there:
            self._shown[place], self._state[place] = there[stands.picked], PICKED
        elif stands.wanted_takes.difference(catalogue.take[row] for row in rows):
            self._state[place] = REROLL
        elif there and not kept:
            self._state[place] = REJECTED

    def _item(self, place: int, row: dict[str, Any]) -> dict[str, Any]:
        picture, rows = self._catalogue.pictures[place], self._catalogue.rows(place)
        stands = self._stands.get(picture)
        score = float(self._catalogue.score[self._shown[place]])
        takes = {int(self._catalogue.take[one]) for one in rows}
        last = stands.last if stands else None
        return {
            "id": picture,
            "state": STATES[self._state[place]],
            **self._take(row, score, stands),
            "subject": row["subject"],
            "scene": row["scene"],
            "prompt": row["prompt"],
            "takes": int(self._catalogue.made[place]),
            "rejected_takes": len(stands.rejected) if stands else 0,
            "asked": sorted(stands.wanted_takes - takes) if stands else [],
            "next_take": next_take(takes, stands),
            "notes": [told(one) for one in stands.notes[-20:]] if stands else [],
            "last": told(last) if last else None,
        }

    @staticmethod
    def _take(row: dict[str, Any], score: float, stands: Standing | None) -> dict[str, Any]:
        ok = row["status"] == "ok"
        return {
            "asset_id": row["asset_id"],
            "name": row["scene"],
            "take": row["take"] or 1,
            "seed": row["seed"],
            "width": row["width"],
            "height": row["height"],
            "content": row["sha256"][:16] if ok else None,
            "score": None if np.isnan(score) else round(score, 4),
            "error": None if ok else (row["error"] or "")[:_SHORT_ERROR],
            "fault": None if ok else row["fault"] or row["status"],
            "picked": bool(stands and ok and stands.picked == row["asset_id"]),
            "rejected": bool(stands and row["asset_id"] in stands.rejected),
        }


def told(one: Decision) -> dict[str, Any]:
    """A decision as JSON."""
    return {
        "decision_id": one.decision_id,
        "action": one.action,
        "asset_id": one.asset_id,
        "take": one.take,
        "note": one.note,
        "who": one.who,
        "at": one.at.isoformat(timespec="seconds"),
    }


def _best(catalogue: Catalogue, rows: list[int]) -> int:
    places: Numbers = np.array(rows)
    worth = np.nan_to_num(catalogue.score[places], nan=-np.inf)
    return int(places[np.lexsort((catalogue.take[places], -worth))[0]])


def _numpy(mask: Any) -> Booleans:
    found: Booleans = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return found
