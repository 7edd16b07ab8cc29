"""An evaluation: compare the pictures with the scores that are there, let workers score the rest, write it down.

The unit is a subject: its pictures are compared with each other. A subject whose scores are all there, of these metrics
in these versions and of these very pictures, is left out; one of which anything is missing or has changed is scored
whole. Scores are committed every two seconds, so a killed evaluation loses little, and the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.engine.cluster.address import check_address
from consistory_ray.engine.cluster.joining import joined_cluster
from consistory_ray.engine.cluster.placement import shape_workers
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import with_backoff
from consistory_ray.engine.scoring.dispatch import ScoreDispatch
from consistory_ray.engine.scoring.work import Evaluation, ScoreWork
from consistory_ray.engine.stopping import StopRequest, stop_on_signals
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.named_code import is_named_code
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.takes import chosen_rows
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.record import LEASE_FOLDER
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.quality.metrics import WEIGHED, MetricOptions, check_metric


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What to measure, and where.

    Attributes:
        metrics: names, see :func:`~consistory_ray.quality.metrics.load_metric`; None is ``judge`` for pictures of the
            bundled model, and else has to be given.
        weights: of them.
        run: where workers run: ``address``, ``device``, ``workers``, ``cpus_per_worker``, ``gpus_per_worker``,
            ``lease_seconds``.
    """

    metrics: tuple[str, ...] | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)


def evaluate_output(
    url: str,
    options: EvaluationOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_notice: Callable[[str], None] = lambda text: None,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Score every picture of an output.

    Args:
        url: the output, a folder or any fsspec URL that all workers can reach.
        options: what to measure, and where.
        on_progress: is told how many pictures of how many are scored.
        on_notice: is told what somebody should know.
        stop: asks for a stop from another thread; signals are heard in the main thread.

    Raises:
        InputError: nothing was rendered there, or a metric or option cannot be used.
        CheckpointError: weights of a metric cannot be used.
        OutputBusyError: a run or another evaluation is writing to the output.
        StorageError: the output is out of reach.
        RunError: the evaluation cannot go on.
    """
    stop = stop if stop is not None else StopRequest()
    options = options or EvaluationOptions()
    started, store = time.monotonic(), open_output(url)
    rows = scorable(store)
    options = replace(options, metrics=_metrics(options, rows))
    check_address(options.run.address)
    with (
        stop_on_signals(stop),
        Lease.acquire(store, "an evaluation", ttl_seconds=options.run.lease_seconds, on_wait=on_notice) as lease,
    ):
        work = ScoreWork(store.begun(LEASE_FOLDER), scorable(store), lambda: lease.lost, on_progress, on_notice)
        with joined_cluster(options.run) as watch:
            shape = shape_workers(options.run)
            named = MetricOptions(options.weights, shape.device)
            dispatch = ScoreDispatch(shape, (work.store, options.metrics, named, shape.threads), watch, lambda: stop)
            try:
                hello = dispatch.hello()
                for notice in hello.notices:
                    on_notice(notice)
                for subject, scored in dispatch.score(work.begin(hello.facts)):
                    work.take(subject, scored)
            finally:
                dispatch.close()
                work.commit()
        return work.end(interrupted=bool(stop), seconds=time.monotonic() - started)


def scorable(store: OutputStore) -> pa.Table:
    """The index's rows of pictures that are there; of several takes of a scene, that of its picture.

    Raises:
        InputError: there are none.
    """
    table = chosen_rows(with_backoff(lambda: read_index(store)))
    table = table.filter(pc.equal(table["status"], "ok"))
    if not len(table):
        fix = "give the folder or URL that a render wrote to"
        raise InputError("there are no pictures to be scored", [Problem("URL", store.url, fix)])
    return table


def _metrics(options: EvaluationOptions, rows: pa.Table) -> tuple[str, ...]:
    """The metrics that are to be used.

    Raises:
        InputError: none is named and the pictures are not of the bundled model, or one is unknown or named twice.
    """
    names = options.metrics
    if names is None:
        if any(not model.startswith("miniature") for model in pc.unique(rows["model"]).to_pylist()):
            fix = "name some, such as --metrics clip,dinov2 --weights clip=FOLDER --weights dinov2=FOLDER"
            raise InputError("these pictures need a metric", [Problem("--metrics", "", fix)])
        names = ("judge",)
    check_metrics(names, options.weights)
    return names


def check_metrics(names: Sequence[str], weights: Mapping[str, str], field_name: str = "--metrics") -> None:
    """Refuse metrics that cannot be used; nothing is loaded.

    Args:
        names: of the metrics.
        weights: their weights, by name.
        field_name: what the names were given as, for messages.

    Raises:
        InputError: one is unknown, named twice, or lacks its weights, or there are weights of none.
    """
    for name in names:
        check_metric(field_name, name)
        if name in WEIGHED and name not in weights:
            fix = f"give a folder or a Hugging Face id: --weights {name}=PLACE"
            raise InputError(f"{name} needs weights", [Problem("--weights", "", fix)])
    if not names or len(set(names)) < len(names):
        raise InputError("metrics are not clear", [Problem(field_name, ",".join(names), "name each one once")])
    unknown = sorted(set(weights) - set(names))
    if unknown and not any(is_named_code(name) for name in names):  # these know their own names
        fix = f"give weights of {', '.join(names)} only"
        raise InputError("weights of no metric", [Problem("--weights", ", ".join(unknown), fix)])
