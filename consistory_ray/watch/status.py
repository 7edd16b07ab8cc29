"""How far an output is, from storage alone: its run record and its index, read once or followed while a run goes on.

Index parts never change, so a reader keeps what it has read and fetches only parts it has not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.stopping import EXIT_MAX_COST
from consistory_ray.errors import InputError, Problem
from consistory_ray.watch.tally import RATE_WINDOW_SECONDS

if TYPE_CHECKING:
    import pyarrow as pa

    from consistory_ray.output.decisions import Decision
    from consistory_ray.output.run_record import RunRecord
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.plan.plan import Plan

COLUMNS = (
    "asset_id",
    "subject",
    "kind",
    "scene",
    "path",
    "status",
    "attempt",
    "error",
    "fault",
    "seconds",
    "created_at",
    "take",
    "take_of",
    "score",
    "scored_by",
)


@dataclass(frozen=True, slots=True)
class SubjectStatus:
    """How far one subject is."""

    subject_id: str
    planned: int
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class Status:
    """How far an output is.

    Attributes:
        state: of the last run as its record says, ``"new"`` if there was none; ``running`` is also what a run leaves
            that was killed, see ``silent``.
        updated_at: when the record was written.
        planned, done, failed, todo: pictures, anchors included; those that failed are also still to do.
        subjects: subject by subject.
        failures: path, attempt, fault (see :mod:`consistory_ray.engine.faults`) and error of each failed picture.
        failure_kinds: how many failed by which fault, most frequent first.
        rate: pictures per second over the last minutes of a running run, else None.
        seconds_left: time to the end at that rate.
        newest_at: when the newest picture was finished.
        error: why the last run could not go on, if it could not; of a running run, why it waits for its output.
        heard_at: when the coordinator of a running run was last heard of.
        silent: whether that is so long ago, or its process so surely gone, that the same command should be run again.
        forecast, outcome, currency: of the last run, see :class:`~consistory_ray.engine.events.RunSummary`; while it is
            running there is no outcome.
        max_cost_reached: whether it was stopped by its ``max_cost``.
        takes: how many further takes there are of the scenes.
        gated: whether the job has a gate.
        decisions: how many pictures people have picked, rejected, asked a re-roll of or noted something about, by what.
        rerolls, rerolls_todo: takes that they have asked for, and those of them that are not made yet.
        decisions_unread: parts of the decisions that cannot be used, and why; they are passed over.
        short: asset id, path, score, bar and number of takes of each scene of which no take passes the gate.
    """

    name: str
    output: str
    state: str
    updated_at: str | None
    planned: int
    done: int
    failed: int
    todo: int
    subjects: tuple[SubjectStatus, ...]
    failures: tuple[dict[str, Any], ...]
    failure_kinds: dict[str, int] = field(default_factory=dict)
    rate: float | None = None
    seconds_left: float | None = None
    newest_at: str | None = None
    error: str | None = None
    heard_at: str | None = None
    silent: bool = False
    forecast: Mapping[str, float] = field(default_factory=dict)
    outcome: Mapping[str, float] = field(default_factory=dict)
    currency: str = ""
    max_cost_reached: bool = False
    takes: int = 0
    gated: bool = False
    decisions: dict[str, int] = field(default_factory=dict)
    rerolls: int = 0
    rerolls_todo: int = 0
    decisions_unread: tuple[str, ...] = ()
    short: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


class IndexFollower:
    """The rows of an index that count, kept current with little reading.

    Args:
        store: the output.
    """

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._seen: frozenset[str] = frozenset()
        self._rows: pa.Table | None = None

    def read(self) -> pa.Table:
        """The rows of :data:`COLUMNS` as they are now; reads only parts that are new since the last call.

        Raises:
            CorruptIndexError, InputError, StorageError: see :func:`consistory_ray.output.index.parts.read_parts`.
        """
        import pyarrow as pa

        from consistory_ray.output.index.parts import list_parts, read_parts
        from consistory_ray.output.index.rows import latest_rows

        if not self._seen <= set(list_parts(self._store)):
            # parts were merged: rows that are gone on purpose would otherwise be kept for ever
            self._seen, self._rows = frozenset(), None
        new, parts = read_parts(self._store, COLUMNS, skip=self._seen)
        if parts or self._rows is None:
            self._rows = latest_rows(new if self._rows is None else pa.concat_tables([self._rows, new]))
        self._seen |= frozenset(parts)
        return self._rows


class StatusReader:
    """Compares an output with a plan, again and again.

    Args:
        plan: what was to be rendered, and what people have asked for.
        store: the output.
        decided: what :class:`Status` says of decisions.
    """

    def __init__(self, plan: Plan, store: OutputStore, decided: Mapping[str, Any] | None = None) -> None:
        import pyarrow as pa

        self._plan = plan
        self._decided = dict(decided or {})
        self._store = store
        self._index = IndexFollower(store)
        assets = list(plan.assets())
        self._ids = pa.array([asset.asset_id for asset in assets], pa.string())
        self._paths = pa.array([asset.path for asset in assets], pa.string())
        self._subjects = pa.array([asset.subject_id for asset in assets], pa.string())

    def read(self, record: RunRecord | None, now: datetime | None = None) -> Status:
        """The output as it is.

        Args:
            record: the output's, as it is.
            now: the present, UTC.

        Raises:
            StorageError: the output cannot be read.
        """
        import pyarrow.compute as pc

        from consistory_ray.output.index.rows import is_not_kept

        everything = self._index.read()
        rows = self._of_plan(everything)
        done, failed = self._done(rows), rows.filter(is_not_kept(rows))
        done_by, failed_by = (_counts(table["planned_subject"]) for table in (done, failed))
        gone = self._gone(done)
        planned = len(self._ids) - gone.total()
        failures = [
            {"path": row["planned_path"], "attempt": row["attempt"], "fault": row["fault"], "error": row["error"]}
            for row in failed.select(["planned_path", "attempt", "fault", "error"]).to_pylist()
        ]
        running = record is not None and record.state == "running"
        rate = _rate(done, record, now or datetime.now(timezone.utc)) if record is not None and running else None
        left = planned - len(done) - len(failed)
        newest = pc.max(done["created_at"]).as_py() if running else None
        return Status(
            name=self._plan.name,
            output=self._store.url,
            state=record.state if record else "new",
            updated_at=record.updated_at if record else None,
            planned=planned,
            done=len(done),
            failed=len(failed),
            todo=planned - len(done),
            subjects=tuple(
                SubjectStatus(
                    subject.subject_id,
                    len(subject.anchors) + len(subject.renders) - gone[subject.subject_id],
                    done_by[subject.subject_id],
                    failed_by[subject.subject_id],
                )
                for subject in self._plan.subjects
            ),
            failures=tuple(failures),
            failure_kinds=dict(Counter(item["fault"] or "error" for item in failures).most_common()),
            rate=rate,
            seconds_left=left / rate if rate else None,
            newest_at=newest.isoformat(timespec="seconds") if newest else None,
            error=record.error if record is not None else None,
            **(_money_of(record) if record is not None else {}),
            **self._taken(everything, done),
            **self._decided,
            **(_heard_of(self._store, bool(record and record.error)) if running else {}),
        )

    def _of_plan(self, rows: pa.Table) -> pa.Table:
        """Rows of the plan's pictures, with where the plan has them; none of takes that a gate has asked for."""
        import pyarrow.compute as pc

        place = pc.index_in(rows["asset_id"], value_set=self._ids)
        known = pc.is_valid(place)
        rows, place = rows.filter(known), place.filter(known)
        rows = rows.append_column("planned_path", self._paths.take(place.combine_chunks()))
        return rows.append_column("planned_subject", self._subjects.take(place.combine_chunks()))

    def _done(self, rows: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        in_place = pc.equal(rows["path"], rows["planned_path"])
        return rows.filter(pc.and_(_equal(rows, "status", "ok"), in_place))

    def _gone(self, done: pa.Table) -> Counter[str]:
        """How many pictures of each subject people have rejected and are not there any more: nobody misses them."""
        rejected = self._plan.decided.rejected
        gone = rejected.difference(done["asset_id"].to_pylist()) if rejected else frozenset()
        takes = ((take, subject.subject_id) for subject in self._plan.subjects for take in subject.renders)
        return Counter(subject_id for take, subject_id in takes if take.asset_id in gone) if gone else Counter()

    def _taken(self, rows: pa.Table, done: pa.Table) -> dict[str, Any]:
        """How many further takes there are and are still wanted, and what the plan's gate makes of them."""
        import pyarrow.compute as pc

        from consistory_ray.output.standing import gate_of, shortfalls, take_in

        decided = self._plan.decided
        asked = decided.rerolls.difference(done["asset_id"].to_pylist()) if decided.rerolls else frozenset()
        further = pc.and_(_equal(rows, "status", "ok"), pc.is_in(rows["take_of"], value_set=self._ids))
        told = {"takes": pc.sum(further).as_py() or 0, "rerolls": len(decided.rerolls)}
        told["rerolls_todo"] = len(asked - decided.rejected)
        if (gate := gate_of(self._plan)) is None:
            return told
        take_in(gate, self._plan, rows)
        return {**told, "gated": True, "short": tuple(asdict(one) for one in shortfalls(gate, self._plan))}


def read_status(plan: Plan, store: OutputStore) -> Status:
    """Compare a plan with an output's index and run record, once.

    Raises:
        StorageError: the output cannot be read.
    """
    return StatusFollower(store, plan).read()


class StatusFollower:
    """An output's status again and again, whatever job its latest run has.

    Args:
        store: the output.
        plan: what was to be rendered; None is what the run record says.
    """

    def __init__(self, store: OutputStore, plan: Plan | None = None) -> None:
        from consistory_ray.output.decisions import DecisionReader

        self._store = store
        self._job: Mapping[str, Any] | None = None
        self._reader: StatusReader | None = None
        self._plan = plan
        self._given = plan is not None
        self._decisions = DecisionReader(store)
        self._decided: tuple[list[Decision], Mapping[str, str]] = [], {}

    def read(self) -> Status:
        """The output as it is.

        Raises:
            InputError: no run record names a job.
            StorageError: the output cannot be read.
        """
        from consistory_ray.output.asked import asked_plan, decision_counts
        from consistory_ray.output.run_record import read_run_record

        record = read_run_record(self._store)
        if record is not None and not self._given and any(_is_unread(subject) for subject in _subjects(record)):
            record = None  # no run has written it: reading it would fetch what it names
        decisions, unread = self._decisions.read()
        if self._plan is None or not (self._given or record is None or record.job == self._job):
            self._plan, self._job = plan_of_record(record, self._store), record.job if record else None
            self._reader = None
        if self._reader is None or (decisions, unread) != self._decided:
            plan, counts = asked_plan(self._plan, decisions), decision_counts(self._plan, decisions)
            told = tuple(f"{path} ({reason})" for path, reason in unread.items())
            self._reader = StatusReader(plan, self._store, {"decisions": counts, "decisions_unread": told})
            self._decided = decisions, unread
        return self._reader.read(record)


def _subjects(record: RunRecord) -> Sequence[Any]:
    subjects = record.job.get("subjects")
    return subjects if isinstance(subjects, list) else ()


def _is_unread(subject: Any) -> bool:
    """Whether a subject of a recorded job still says where it is stored, which a run resolves before it records it."""
    named = subject.get("from") if isinstance(subject, Mapping) else None
    return any(isinstance(one, str) for one in (named if isinstance(named, list) else [named]))


def plan_of_record(record: RunRecord | None, store: OutputStore) -> Plan:
    """The plan that an output was made from.

    Args:
        record: the output's.
        store: the output.

    Raises:
        InputError: there is no record, or it names no job.
        StorageError: the output cannot be read.
    """
    from consistory_ray.jobs.job import parse_job
    from consistory_ray.output.comparison import plan_as_begun
    from consistory_ray.output.run_record import RUN_RECORD
    from consistory_ray.plan.plan import make_plan

    if record is None or not record.job:
        fix = f"give the folder that a render wrote to (no sound {RUN_RECORD} in it names a job), or the job"
        raise InputError("nothing was rendered there", [Problem("URL-OR-JOB", store.url, fix)])
    return plan_as_begun(make_plan(parse_job(record.job)), store)


def _heard_of(store: OutputStore, waits: bool) -> dict[str, Any]:
    """What the lease of a run that calls itself running, or waiting for its output, says of its coordinator."""
    from consistory_ray.output.lease.holders import current_lease, is_silent

    lease = current_lease(store)
    if lease is None:
        return {}
    heard = datetime.fromtimestamp(lease.renewed_at, timezone.utc)
    return {"heard_at": heard.isoformat(timespec="seconds"), "silent": is_silent(lease, waits=waits)}


def _money_of(record: RunRecord) -> dict[str, Any]:
    """What a run was expected to take, and what it took."""
    took = {} if record.state == "running" else record.totals
    outcome = {name: took[name] for name in ("device_hours", "cost") if name in took}
    reached = record.state == "interrupted" and record.exit_code == EXIT_MAX_COST
    known = {"forecast": dict(record.forecast), "outcome": outcome, "currency": record.currency}
    return {**known, "max_cost_reached": reached}


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    return Counter({item["values"]: item["counts"] for item in column.value_counts().to_pylist()})


def _equal(table: pa.Table, column: str, value: str) -> Any:
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(table[column], value), False)


def _rate(done: pa.Table, record: RunRecord, now: datetime) -> float | None:
    """Pictures per second over the last minutes of a run; None before its second picture.

    Rows without a rendering time were not rendered but found on storage.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    begun = datetime.fromisoformat(record.started_at)
    times = done["created_at"].filter(pc.is_valid(done["seconds"]))
    newest = pc.max(times).as_py()
    if newest is None:
        return None
    now = max(now, newest)
    since = max(begun.timestamp(), now.timestamp() - RATE_WINDOW_SECONDS)
    limit = pa.scalar(datetime.fromtimestamp(since, timezone.utc), times.type)
    recent = times.filter(pc.greater_equal(times, limit))
    oldest = pc.min(recent).as_py()
    if len(recent) < 2 or oldest is None:
        return None
    return float((len(recent) - 1) / max(1e-3, (now - oldest).total_seconds()))
