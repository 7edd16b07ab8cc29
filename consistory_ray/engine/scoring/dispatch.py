"""Subjects handed out to scoring workers, one at a time each; who dies is replaced, and what kills is given up."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.faults import Failure
from consistory_ray.engine.scoring.worker import ScoreWorker, ScoringHello
from consistory_ray.errors import CheckpointError, ClusterLostError, InputError, RunError
from consistory_ray.quality.scoring import Scored

if TYPE_CHECKING:
    from consistory_ray.engine.cluster.cluster_watch import ClusterWatch
    from consistory_ray.engine.cluster.placement import WorkerShape
    from consistory_ray.quality.scoring import SubjectPictures

MOST_DEATHS = 2
"""Workers that a subject may take down before its pictures are given up."""
MOST_STARTS = 3
"""Workers in a row that may die before they have loaded their metrics."""
_WAIT_SECONDS = 0.5


class ScoreDispatch:
    """The workers of one evaluation.

    Args:
        shape: how many at most, and what each gets.
        arguments: of :class:`~consistory_ray.engine.scoring.worker.ScoreWorker`.
        watch: tells whether the cluster is still there.
        should_stop: whether to hand out nothing more.
    """

    def __init__(
        self, shape: WorkerShape, arguments: Sequence[Any], watch: ClusterWatch, should_stop: Callable[[], object]
    ) -> None:
        self._shape, self._arguments, self._watch, self._should_stop = shape, tuple(arguments), watch, should_stop
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # reference of the greeting -> actor
        self._running: dict[Any, tuple[Any, SubjectPictures]] = {}
        self._failed_starts = 0
        self._hello: ScoringHello | None = None

    def hello(self) -> ScoringHello:
        """What the first worker says once it has loaded its metrics.

        Raises:
            InputError, CheckpointError: a metric cannot be loaded.
            RunError: workers die while they load.
        """
        self._start()
        while self._hello is None:
            for reference in self._wait():
                self._greeted(reference)
        return self._hello

    def score(self, subjects: Sequence[SubjectPictures]) -> Iterator[tuple[SubjectPictures, Scored]]:
        """What came of each subject, as they come; on a stop what is running is left.

        Raises:
            RunError: workers die one after the other, or see other metrics than the first one.
            ClusterLostError: Ray ended.
        """
        waiting, deaths = deque(subjects), Counter[str]()
        while (waiting or self._running) and not self._should_stop():
            while len(self._idle) + len(self._starting) + len(self._running) < min(
                self._shape.count, len(waiting) + len(self._running)
            ):
                self._start()
            while waiting and self._idle:
                self._hand_out(self._idle.pop(), waiting.popleft())
            for reference in self._wait():
                if reference in self._starting:
                    self._greeted(reference)
                    continue
                actor, subject = self._running.pop(reference)
                answer = self._answer(reference)
                if isinstance(answer, Scored):
                    self._idle.append(actor)
                    yield subject, answer
                    continue
                self._kill(actor)  # it died, or what it holds cannot be trusted any more
                deaths[subject.subject] += 1
                if deaths[subject.subject] < MOST_DEATHS:
                    waiting.append(subject)
                    continue
                why = f"the worker failed each time the subject was scored: {answer}"
                yield subject, Scored([], {picture.asset_id: why for picture in subject.pictures})

    def close(self) -> None:
        """End all workers."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._running.values())]:
            self._kill(actor)
        self._idle, self._starting, self._running = [], {}, {}

    def _start(self) -> None:
        import ray

        actor: Any = (
            ray.remote(ScoreWorker)
            .options(num_cpus=self._shape.num_cpus, num_gpus=self._shape.num_gpus, max_restarts=0, max_task_retries=0)
            .remote(*self._arguments)
        )
        self._starting[actor.hello.remote()] = actor

    def _hand_out(self, actor: Any, subject: SubjectPictures) -> None:
        self._running[actor.score.remote(subject)] = (actor, subject)

    def _wait(self) -> list[Any]:
        """References of calls that are over."""
        import ray

        waiting = [*self._running, *self._starting]
        done: list[Any] = ray.wait(waiting, num_returns=1, timeout=_WAIT_SECONDS)[0] if waiting else []
        if not done:
            self._watch.answers()  # raises if it never will again
        return done

    def _greeted(self, reference: Any) -> None:
        actor, answer = self._starting.pop(reference), self._answer(reference)
        if isinstance(answer, ScoringHello):
            if self._hello is not None and answer.facts != self._hello.facts:
                self._kill(actor)
                raise RunError("workers hold different metrics: give every machine the same weights and packages")
            self._hello, self._failed_starts = answer, 0
            self._idle.append(actor)
            return
        self._kill(actor)
        if answer.kind in ("InputError", "CheckpointError"):
            raise {"InputError": InputError}.get(answer.kind, CheckpointError)(answer.message)
        self._failed_starts += 1
        if self._failed_starts >= MOST_STARTS:
            raise RunError(f"no worker comes up: {answer}")
        self._start()

    @staticmethod
    def _answer(reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except ClusterLostError:
            raise
        except Exception as error:  # whatever Ray says of a call that did not come back
            return Failure.of(error)

    @staticmethod
    def _kill(actor: Any) -> None:
        import ray

        try:
            ray.kill(actor, no_restart=True)
        except Exception:  # it is gone already, or the cluster is
            return
