"""Decisions on their way to storage, several at a time, and those of others from there; and pictures that come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from consistory_ray.errors import ConsistoryError, InputError, Problem
from consistory_ray.output.decisions import MERGE_AT, Action, Decision, DecisionReader, merge_decisions, write_decisions
from consistory_ray.output.storage import OutputStore
from consistory_ray.review.board import Board
from consistory_ray.review.catalogue import index_state, read_catalogue

GATHER_SECONDS = 0.15
"""Decisions that are made within this time become one part."""
LOOK_SECONDS, INDEX_SECONDS = 1.5, 5.0
"""Storage is looked at so often, at most, and only while somebody looks at the page."""
_REMEMBERED = 10_000
_log = logging.getLogger(__name__)

Planned = Callable[[], Sequence[str] | None]
"""The plan's scenes in its order, by picture id; None where nobody knows it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants decided.

    Attributes:
        key: a random name: the same wish, sent again after an answer was lost, is one decision.
        others: see :class:`~consistory_ray.output.decisions.Decision`.
    """

    key: str
    action: Action
    picture_id: str
    asset_id: str
    who: str
    take: int | None = None
    note: str = ""
    undoes: str | None = None


class Desk:
    """Reads and writes beside the page. To be used from one event loop; storage is asked in threads.

    Args:
        store: the output.
        planned: see :data:`Planned`; asked whenever the index has changed.

    Attributes:
        board: where everything stands.
        trouble: why storage could not be read the last time; empty when it could.
        broken: decisions' parts that cannot be used, and why.
    """

    def __init__(self, store: OutputStore, planned: Planned = lambda: None) -> None:
        self._store = store
        self._planned = planned
        self._reader = DecisionReader(store)
        self._index: Collection[str] = index_state(store)
        self.board = Board(read_catalogue(store, planned()))
        self.trouble = ""
        self.broken: Mapping[str, str] = {}
        self._read_decisions()
        self._looked = self._looked_at_index = time.monotonic()
        self._looking = asyncio.Lock()
        self._waiting: list[Decision] = []
        self._writing: asyncio.Task[None] | None = None
        self._made: OrderedDict[str, Decision] = OrderedDict()
        self._latest: dict[str, datetime] = {}
        self._written = len(self._reader.parts)
        self._merging: asyncio.Task[None] | None = None

    async def decide(self, wishes: Sequence[Wish]) -> list[Decision]:
        """Make decisions of wishes. When this returns they are on storage and on the board, all of them.

        Raises:
            InputError: one of them cannot be; nothing was decided.
            StorageError: they could not be written; the same wishes may be sent again.
        """
        decisions = [self._decision(number, wish) for number, wish in enumerate(wishes)]
        self._waiting += decisions
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_soon())
        await asyncio.shield(self._writing)
        return decisions

    async def look(self) -> None:
        """See what others have decided, and which pictures have come, if that is not known yet."""
        async with self._looking:
            now = time.monotonic()
            if now - self._looked < LOOK_SECONDS:
                return
            try:
                await asyncio.to_thread(self._read_decisions)
                if now - self._looked_at_index >= INDEX_SECONDS:
                    await asyncio.to_thread(self._read_index)
                    self._looked_at_index = time.monotonic()
                self.trouble = ""
            except ConsistoryError as error:
                self.trouble = str(error)
            self._looked = time.monotonic()

    async def close(self) -> None:
        """Wait for what is being written, and make few parts of many."""
        running = [task for task in (self._writing, self._merging) if task is not None]
        if running:
            await asyncio.wait(running)
        await self._merge()

    def _decision(self, number: int, wish: Wish) -> Decision:
        if wish.key in self._made:
            return self._made[wish.key]
        self._refuse_unfit(number, wish)
        at = datetime.now(timezone.utc)
        newest = self.board.newest(wish.picture_id)
        known = [self._latest.get(wish.picture_id, at), newest.at if newest else at]
        if max(known) >= at:  # somebody's clock is ahead: what was seen is earlier than this nevertheless
            at = max(known) + timedelta(microseconds=1)
        place = self.board.catalogue.place(wish.picture_id)
        facts = self.board.catalogue.facts([self.board.catalogue.rows(place or 0).start])[0]
        try:
            made = Decision(
                wish.picture_id,
                wish.asset_id,
                facts["subject"],
                facts["scene"],
                wish.action,
                wish.who,
                take=wish.take,
                note=wish.note,
                undoes=wish.undoes,
                at=at,
            )
        except ValueError as error:
            raise _unfit(number, wish.action, str(error)) from error
        self._made[wish.key] = made
        self._latest[wish.picture_id] = at
        if len(self._made) > _REMEMBERED:
            self._made.popitem(last=False)
        return made

    def _refuse_unfit(self, number: int, wish: Wish) -> None:
        place = self.board.catalogue.place(wish.picture_id)
        if place is None:
            raise _unfit(number, wish.picture_id, "no scene of this output has that id: load the page again")
        ids = {one["asset_id"]: one["status"] for one in self.board.catalogue.facts(self.board.catalogue.rows(place))}
        if wish.asset_id not in ids:
            raise _unfit(number, wish.asset_id, "that is no take of this scene: load the page again")
        if wish.action == "pick" and ids[wish.asset_id] != "ok":
            raise _unfit(number, wish.asset_id, "there is no picture of this take: pick another one, or ask for one")
        if wish.action == "reroll" and (wish.take or 0) > self.board.next_take(wish.picture_id):
            raise _unfit(number, str(wish.take), f"ask for take {self.board.next_take(wish.picture_id)}")
        if wish.action == "undo":
            target = self.board.decision(wish.picture_id, wish.undoes or "")
            if target is None or target.action == "undo":
                raise _unfit(number, str(wish.undoes), "name a decision about this scene that is no undo")

    async def _write_soon(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        decisions, self._waiting, self._writing = self._waiting, [], None
        await asyncio.to_thread(write_decisions, self._store, decisions)
        self.board.take_in(decisions)
        self._written += 1
        if self._written >= MERGE_AT and self._merging is None:
            self._merging = asyncio.create_task(self._merge())

    async def _merge(self) -> None:
        try:
            await asyncio.to_thread(merge_decisions, self._store)
            self._written = 0
        except ConsistoryError as error:  # it is tidier, and nothing else
            _log.warning("decisions were not merged: %s", error)
        self._merging = None

    def _read_decisions(self) -> None:
        before = self._reader.parts
        decisions, self.broken = self._reader.read()
        if self._reader.parts != before:
            self.board.take_in(decisions)

    def _read_index(self) -> None:
        state = index_state(self._store)
        if state != self._index:
            self.board.show(read_catalogue(self._store, self._planned()))
            self._index = state


def _unfit(number: int, value: str, fix: str) -> InputError:
    return InputError("this cannot be decided", [Problem(f"decisions[{number}]", value, fix)])
