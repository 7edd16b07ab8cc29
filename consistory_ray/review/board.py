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
from consistory_ray.review.catalogue import Catalogue
from consistory_ray.review.query import STATES, Query
from consistory_ray.review.sheet import UNDECIDED, Sheet

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
        self._oldest = self.version = 0
        self._sheet = Sheet(catalogue)

    @property
    def catalogue(self) -> Catalogue:
        """What is shown now."""
        return self._sheet.catalogue

    def show(self, catalogue: Catalogue) -> None:
        """The index was read anew."""
        sheet, known = Sheet(catalogue), dict(self._stands)
        for picture, stands in known.items():  # nobody waits for that
            sheet.settle(picture, stands)
        with self._lock:
            for picture in {picture for picture, one in self._stands.items() if known.get(picture) is not one}:
                sheet.settle(picture, self._stands[picture])
            for picture in known.keys() - self._stands:
                sheet.settle(picture, None)
            self._sheet = sheet
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
                self._sheet.settle(picture, self._stands.get(picture))
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
            return self._sheet.find(query)

    def items(self, pictures: Iterable[str]) -> list[dict[str, Any]]:
        """What a card shows of some scenes; one that is not in the index any more is left out."""
        with self._lock:
            places = [place for picture in pictures if (place := self.catalogue.place(picture)) is not None]
            facts = self.catalogue.facts([int(self._sheet.shown[place]) for place in places])
            return [self._item(place, row) for place, row in zip(places, facts, strict=True)]

    def whole(self, picture: str) -> dict[str, Any] | None:
        """Everything about a scene: its takes, the anchors of its subject, and what was decided."""
        with self._lock:
            place = self.catalogue.place(picture)
            if place is None:
                return None
            rows = self.catalogue.facts(self.catalogue.rows(place))
            scores = self.catalogue.score[self.catalogue.starts[place] : self.catalogue.starts[place + 1]]
            stands = self._stands.get(picture)
            takes = [self._take(row, score, stands) for row, score in zip(rows, scores.tolist(), strict=True)]
            every = sorted(self._every.get(picture, {}).values(), key=lambda one: (one.at, one.decision_id))
            undone = {one.undoes for one in every}
            return {
                **self._item(place, self.catalogue.facts([int(self._sheet.shown[place])])[0]),
                "all_takes": takes,
                "anchors": [self._take(row, float("nan"), None) for row in self.catalogue.anchors(rows[0]["subject"])],
                "history": [told(one) | {"undone": one.decision_id in undone} for one in every],
            }

    def counts(self) -> dict[str, int]:
        """How many scenes stand where."""
        with self._lock:
            found = dict(zip(STATES, np.bincount(self._sheet.state, minlength=len(STATES)).tolist(), strict=True))
            return found | {
                "all": len(self._sheet.state),
                "takes": int(self._sheet.choosable.sum()),
                "notes": int(self._sheet.noted.sum()),
            }

    def facets(self, like: str) -> dict[str, Any]:
        """What filters can choose from.

        Args:
            like: a part of the subjects' names that are listed, the first 200 of them.
        """
        with self._lock:
            encoded = self._sheet.subjects.dictionary_encode()
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            every = np.bincount(codes, minlength=len(encoded.dictionary)).tolist()
            left = np.bincount(codes[self._sheet.state == UNDECIDED], minlength=len(encoded.dictionary)).tolist()
            rows = zip(encoded.dictionary.to_pylist(), every, left, strict=True)
            subjects = [row for row in rows if like.lower() in row[0].lower()]
            score = self.catalogue.score[self.catalogue.ok]
            known = score[~np.isnan(score)]
            return {
                "subjects": [
                    {"name": name, "all": n, "undecided": open_} for name, n, open_ in subjects[:_MOST_SUBJECTS]
                ],
                "more_subjects": max(0, len(subjects) - _MOST_SUBJECTS),
                "faults": self._faults(),
                "measure": self.catalogue.measure,
                "scores": [float(known.min()), float(known.max())] if len(known) else None,
                "takes": bool((self.catalogue.made > 1).any()),
            }

    def next_take(self, picture: str) -> int:
        """The number of the take that is asked for next."""
        place = self.catalogue.place(picture)
        takes = [] if place is None else [int(self.catalogue.take[row]) for row in self.catalogue.rows(place)]
        return next_take(takes, self._stands.get(picture))

    def _faults(self) -> list[dict[str, Any]]:
        table = self.catalogue.table
        told_ = pc.value_counts(self._sheet.faults().filter(pa.array(~self.catalogue.ok))) if len(table) else []
        return [{"name": one["values"].as_py(), "all": one["counts"].as_py()} for one in told_]

    def _item(self, place: int, row: dict[str, Any]) -> dict[str, Any]:
        picture, rows = self.catalogue.pictures[place], self.catalogue.rows(place)
        stands = self._stands.get(picture)
        score = float(self.catalogue.score[self._sheet.shown[place]])
        takes = {int(self.catalogue.take[one]) for one in rows}
        last = stands.last if stands else None
        return {
            "id": picture,
            "state": STATES[self._sheet.state[place]],
            **self._take(row, score, stands),
            "subject": row["subject"],
            "scene": row["scene"],
            "prompt": row["prompt"],
            "takes": int(self.catalogue.made[place]),
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
