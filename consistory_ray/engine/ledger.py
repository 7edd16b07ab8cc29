"""The coordinator's books: rows for the index, numbers for the summary, events for whoever watches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from consistory_ray.engine.events import (
    MAX_LISTED_FAILURES,
    AssetDone,
    AssetFailed,
    AssetFailure,
    BatchDone,
    Committed,
    Event,
)
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.outages import with_backoff
from consistory_ray.engine.workers.worker import Delivered
from consistory_ray.errors import RunError, StorageError
from consistory_ray.output.assets import Scored, asset_parameters
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset, Plan, SubjectPlan


class Ledger:
    """Takes down what became of every asset.

    Args:
        model: as the job names it.
        writer: of the index.
        emit: where events go.
        fingerprint: of the model, if an earlier try of the run had it loaded.
        given_up: ids of the assets that earlier tries gave up; goes on being kept.
        spent: what earlier tries' time went into; goes on being kept.

    Attributes:
        fingerprint: of the model, once a worker has loaded it.
        controlnets: fingerprints of the ControlNets, once a worker has loaded them.
        given_up: ids of the assets that were given up and have not been made since.
        accepted: ids of the assets that cannot be made, as the job accepts; they have rows that say so, too.
        last_delivery: when the last picture was delivered, by the monotonic clock.
        rendered, failed: how many pictures of the plan this run has made and given up.
        scored: how many that were there before it has only looked at.
        takes: how many of the rendered ones are further takes.
        asked: ids of the takes that people have asked for.
        rerolls: how many of those it has made.
        failures: the first of those given up.
        failures_by_kind: how many were given up for what.
    """

    def __init__(
        self,
        model: str,
        writer: IndexWriter,
        emit: Callable[[Event], None],
        fingerprint: str = "",
        given_up: set[str] | None = None,
        spent: dict[str, float] | None = None,
    ) -> None:
        self._model = model
        self._writer = writer
        self.emit = emit
        self.fingerprint = fingerprint
        self.controlnets: tuple[str, ...] = ()
        self.given_up = given_up if given_up is not None else set()
        self.accepted: set[str] = set()
        self.last_delivery: float | None = None
        self.rendered = 0
        self.scored = 0
        self.takes = 0
        self.asked: Collection[str] = ()
        self.rerolls = 0
        self.failed = 0
        self.failures: list[AssetFailure] = []
        self.failures_by_kind: Counter[str] = Counter()
        self._spent = spent if spent is not None else {}

    def batch_done(self, batch: BatchDone, device: float) -> None:
        """A call came back that took so many seconds of its worker's device."""
        beside = {phase: batch.phases.get(phase, 0.0) for phase in ("score", "encode", "write")}
        for name, seconds in {"device": device, **beside}.items():
            self._spent[name] = self._spent.get(name, 0.0) + seconds
        self.emit(batch)

    def delivered(
        self,
        asset: Asset,
        subject: SubjectPlan,
        item: Delivered,
        worker: str,
        attempt: int,
        *,
        again: bool = False,
        cache_sha256: str | None = None,
    ) -> None:
        """A picture is on storage; ``again`` if it was there before this run and had to be made a second time."""
        parameters = asset_parameters(
            asset, subject, model=self._model, model_fingerprint=self.fingerprint, score=item.score
        )
        row = IndexRow.rendered(
            parameters,
            item.written,
            item.size,
            seconds=item.seconds,
            worker=worker,
            attempt=attempt,
            cache_sha256=cache_sha256,
            mask=item.mask,
        )
        self.last_delivery = time.monotonic()
        self.given_up.discard(asset.asset_id)
        self._add(row)
        if not again:
            self.rendered += 1
            self.takes += bool(asset.take_of)
            self.rerolls += asset.asset_id in self.asked
            self.emit(AssetDone(asset, item.seconds, worker, attempt, item.score.value if item.score else None))

    def looked_at(self, asset: Asset, row: IndexRow, score: Scored, worker: str, attempt: int) -> None:
        """A picture that was there before has a score now; ``row`` is what the index said of it."""
        self._add(replace(row, score=score.value, scored_by=score.scored_by, created_at=datetime.now(timezone.utc)))
        self.given_up.discard(asset.asset_id)
        self.scored += 1
        self.emit(AssetDone(asset, 0.0, worker, attempt, score.value))

    def gave_up(self, asset: Asset, subject: SubjectPlan, error: str, fault: Fault, worker: str, attempt: int) -> None:
        """A picture will not be made."""
        parameters = asset_parameters(asset, subject, model=self._model, model_fingerprint=self.fingerprint)
        self.given_up.add(asset.asset_id)
        status: Literal["failed", "rejected"] = "rejected" if fault is Fault.REJECTED else "failed"
        row = IndexRow.failed(parameters, error, fault=fault.value, worker=worker, attempt=attempt, status=status)
        self._add(row)
        self._count(asset, error, fault, worker, attempt)

    def _count(self, asset: Asset, error: str, fault: Fault, worker: str, attempt: int) -> None:
        self.failed += 1
        self.failures_by_kind[fault.value] += 1
        if len(self.failures) < MAX_LISTED_FAILURES:
            self.failures.append(AssetFailure(asset.asset_id, asset.path, error, fault.value))
        self.emit(AssetFailed(asset, error, fault.value, worker, attempt))

    def still_rejected(self, plan: Plan, rejected: Mapping[str, str]) -> frozenset[str]:
        """Count the pictures that earlier runs have rejected and that are not made again; returns their ids.

        Args:
            plan: of the run.
            rejected: asset id -> why, as the index has it.
        """
        ids = set()
        for asset in plan.assets():
            if (reason := rejected.get(asset.asset_id)) is not None:
                self.given_up.add(asset.asset_id)
                self._count(asset, reason, Fault.REJECTED, "", 1)
                ids.add(asset.asset_id)
        return frozenset(ids)

    def refused(self, plan: Plan, done: Collection[str]) -> frozenset[str]:
        """Take down the pictures that cannot be made, as the job accepts; no limit on failures counts them.

        Returns:
            Their ids, without those in ``done``.
        """
        ids = set()
        for subject in plan.subjects:
            assets = (
                {asset.asset_id: asset for asset in (*subject.anchors, *subject.scenes)} if subject.impossible else {}
            )
            for asset_id, reason in subject.impossible:
                if asset_id not in done:
                    self.gave_up(assets[asset_id], subject, reason, Fault.BAD_ASSET, "", 1)
                    self.given_up.discard(asset_id)
                    self.accepted.add(asset_id)
                    ids.add(asset_id)
        return frozenset(ids)

    def take_over(self, other: Ledger) -> None:
        """Go on with the numbers of failures of an earlier try, after which nothing more is tried."""
        self.failed, self.failures, self.failures_by_kind = other.failed, other.failures, other.failures_by_kind

    def tick(self) -> None:
        """Commit rows that have waited long enough."""
        self._committing(self._writer.tick)

    def flush(self) -> None:
        """Commit all rows.

        Raises:
            StorageError: it failed several times over.
        """
        self._committing(self._writer.flush)

    def close(self, *, merge: bool) -> None:
        """Commit all rows and, if ``merge``, make one part of them all; without it this is quick."""
        self.flush()
        if merge:
            with_backoff(self._writer.close)

    def rescue(self) -> None:
        """Commit what can be committed while another error is on its way up, which must not be hidden by this one's."""
        with suppress(StorageError, RunError):  # RunError: the lease is lost, nothing may be written any more
            self._writer.flush()

    def _add(self, row: IndexRow) -> None:
        self._committing(lambda: self._writer.add(row), 1)

    def _committing(self, action: Callable[[], None], added: int = 0) -> None:
        """Do something that may commit rows, again if the storage fails, and tell how long it took if it did."""
        waiting, started = self._writer.pending + added, time.perf_counter()
        try:
            action()
        except StorageError:  # a row that was to be added was taken all the same
            with_backoff(self._writer.flush)
        if waiting and not self._writer.pending:
            self.emit(Committed(waiting, time.perf_counter() - started))


def died_with(failure: Failure) -> str:
    """The error text of an asset that took its workers down."""
    what = {Fault.STUCK: "process hung", Fault.BROKEN: "device failed"}.get(failure.fault, "process died")
    return f"the worker's {what} each time it was rendered: {failure}"
