"""The run's workers: started, welcomed, replaced when they die, given up when they keep dying."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray

from consistory_ray.engine.cluster import WorkerShape
from consistory_ray.engine.faults import Failure
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.renderer import RendererSpec
from consistory_ray.engine.worker import CONCURRENT_CALLS, RenderWorker
from consistory_ray.output.storage import OutputStore

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    actor: Any
    hello: Any
    deaths: int = 0


class WorkerPool:
    """A fixed number of slots, each with one actor at a time. Slots are named ``worker-0``, ``worker-1``, ….

    Args:
        shape: how many workers, and what each needs.
        model, torch_dtype: for the renderers.
        store: the output.
        options: the run's options.
    """

    def __init__(
        self, shape: WorkerShape, model: str, torch_dtype: str, store: OutputStore, options: RunOptions
    ) -> None:
        self._shape = shape
        self._spec = RendererSpec(model, shape.device, torch_dtype, shape.threads)
        self._store = store
        self._options = options
        self._slots = {f"worker-{number}": self._start() for number in range(shape.count)}
        self.last_failure: Failure | None = None

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def hellos(self) -> dict[Any, str]:
        """What is still to be heard of: the reference of each starting worker's greeting, and its name."""
        return {slot.hello: name for name, slot in self._slots.items() if slot.hello is not None}

    def actor(self, name: str) -> Any:
        """The actor handle of a worker."""
        return self._slots[name].actor

    def names(self) -> list[str]:
        """All slots that are still in use."""
        return list(self._slots)

    def greeted(self, name: str) -> None:
        """The worker's greeting has arrived."""
        self._slots[name].hello = None

    def succeeded(self, name: str) -> None:
        """The worker finished a call: earlier deaths in its place no longer count."""
        self._slots[name].deaths = 0

    def lost(self, name: str, failure: Failure) -> bool:
        """The worker is gone, or of no use.

        Returns:
            True if another one was asked for in its place, False if too many died there in a row.
        """
        self.last_failure = failure
        slot = self._slots.pop(name)
        _kill(slot.actor)
        if slot.deaths + 1 >= self._options.caps.worker_deaths:
            return False
        self._slots[name] = self._start()
        self._slots[name].deaths = slot.deaths + 1
        return True

    def close(self) -> None:
        """End all workers."""
        for slot in self._slots.values():
            _kill(slot.actor)
        self._slots.clear()

    def _start(self) -> _Slot:
        actor: Any = (
            ray.remote(RenderWorker)
            .options(
                num_cpus=self._shape.num_cpus,
                num_gpus=self._shape.num_gpus,
                max_restarts=0,  # a worker that comes back by itself would be one that the scheduler knows nothing of
                max_task_retries=0,
                max_concurrency=CONCURRENT_CALLS,
            )
            .remote(self._options.renderer, self._spec, self._store)
        )
        return _Slot(actor, actor.hello.remote())


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except Exception as error:  # it is gone already, or the cluster is
        _log.debug("could not kill a worker: %s", error)
