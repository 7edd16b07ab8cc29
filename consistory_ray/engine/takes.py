"""The gate of a run: which takes are there, which are to be made besides, and what has to be looked at again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.engine.events import MAX_LISTED_FAILURES
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.rows import IndexRow, is_not_kept, table_to_rows
from consistory_ray.output.index.takes import picture_ids
from consistory_ray.output.standing import Shortfall, gate_of, shortfalls, take_in
from consistory_ray.plan.takes import further_takes, possible_scenes, take_of
from consistory_ray.quality.gate import Gate, Wanted

if TYPE_CHECKING:
    from consistory_ray.engine.workers.worker import Report
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.plan.plan import Asset, Plan


class TakeKeeper:
    """What one try of a run knows of the takes of a gated plan besides those that the plan has itself.

    Without a gate it knows of none, and asks for none.

    Args:
        plan: what is rendered.

    Attributes:
        wanted: further takes that are to be made from the start.
        expected: for each further take that has to be there in the end its path, by asset id.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._gate: Gate | None = None
        self._scenes: dict[str, Asset] = {}
        if plan.quality is not None:
            self._scenes = {scene.asset_id: scene for subject in plan.subjects for scene in possible_scenes(subject)}
        self._planned = {take.asset_id for subject in plan.subjects for take in subject.takes}
        self._rows: dict[str, IndexRow] = {}  # of pictures that have to be looked at
        self.wanted: tuple[Asset, ...] = ()
        self.expected: dict[str, str] = {}

    def possible(self) -> dict[str, str]:
        """Paths of all further takes that there may be, by asset id."""
        return {take.asset_id: take.path for take in further_takes(self._plan)}

    def begin(self, store: OutputStore, done: Collection[str], *, only_failed: bool) -> None:
        """See what is there, and what is wanted by now.

        Args:
            store: the output, in step with its files.
            done: ids of the assets that need no rendering.
            only_failed: whether further takes are asked for only of pictures of which something failed.

        Raises:
            CorruptIndexError, InputError, StorageError: the index cannot be read.
        """
        if self._plan.quality is None:
            return
        rows = read_index(store)
        failed = rows.filter(is_not_kept(rows))
        only = set(picture_ids(failed).to_pylist()) if only_failed else None
        self._gate = gate_of(self._plan, only)
        assert self._gate is not None
        unscored = take_in(self._gate, self._plan, rows, rejected=not only_failed)
        to_look = rows.filter(pc.is_in(rows["asset_id"], value_set=pa.array(sorted(unscored), pa.string())))
        self._rows = {
            row.asset_id: row for row in table_to_rows(to_look) if only is None or (row.take_of or row.asset_id) in only
        }
        self.wanted = tuple(self._assets(self._gate.begin()))
        there = (self.asset(picture, take) for picture, take in _further(rows, done) if picture in self._scenes)
        takes = (*(take for take in there if take.asset_id not in self._planned), *self.to_make())
        self.expected = {take.asset_id: take.path for take in takes}

    @property
    def unscored(self) -> frozenset[str]:
        """Ids of pictures that are there and have to be looked at."""
        return frozenset(self._rows)

    def asset(self, picture: str, number: int) -> Asset:
        """A take of a scene of the plan."""
        return take_of(self._scenes[picture], number)

    def to_make(self) -> Iterator[Asset]:
        """The further takes that are to be made, or only looked at, from the start."""
        yield from self.wanted
        further = (row for row in self._rows.values() if row.take_of and row.asset_id not in self._planned)
        yield from (self.asset(row.take_of or "", row.take or 1) for row in further)

    def there(self, asset_ids: Iterable[str]) -> frozenset[str]:
        """Those of these that only have to be looked at."""
        return self.unscored.intersection(asset_ids) if self._rows else frozenset()

    def row(self, asset_id: str) -> IndexRow:
        """What the index says of a picture that had to be looked at."""
        return self._rows[asset_id]

    def came(self, report: Report, assets: Mapping[str, Asset]) -> list[Asset]:
        """Pictures were made, or looked at; which takes are to be made because of it."""
        found = {item.asset_id: item.score for item in report.delivered if item.score is not None} | report.looked
        return [
            wanted
            for asset_id, score in found.items()
            if self._gate is not None and assets[asset_id].picture_id in self._gate
            for wanted in self._assets(self._gate.came(assets[asset_id].picture_id, assets[asset_id].take, score.value))
        ]

    def failed(self, asset: Asset) -> list[Asset]:
        """A picture was given up; which takes are to be made because of it."""
        if self._gate is None or asset.picture_id not in self._gate:
            return []
        return list(self._assets(self._gate.failed(asset.picture_id, asset.take)))

    def expect(self, takes: Iterable[Asset]) -> None:
        """These further takes have to be there in the end, too."""
        self.expected.update({take.asset_id: take.path for take in takes})

    def shortfalls(self) -> tuple[int, tuple[Shortfall, ...]]:
        """Of how many scenes no take passes, and the first of them."""
        if self._gate is None:
            return 0, ()
        found = list(shortfalls(self._gate, self._plan))
        return len(found), tuple(found[:MAX_LISTED_FAILURES])

    def _assets(self, wanted: Iterable[Wanted]) -> Iterator[Asset]:
        return (self.asset(one.picture, one.take) for one in wanted)


def _further(rows: pa.Table, done: Collection[str]) -> Iterator[tuple[str, int]]:
    """Picture and number of the further takes among these assets."""
    further = rows.filter(pc.is_valid(rows["take_of"]))
    columns = (further[name].to_pylist() for name in ("asset_id", "take_of", "take"))
    return ((picture, take) for asset_id, picture, take in zip(*columns, strict=True) if asset_id in done)
