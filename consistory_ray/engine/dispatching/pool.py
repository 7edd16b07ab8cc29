"""The run's workers: started, welcomed, replaced when they die, given up when they keep dying, let go when idle."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import ray

from consistory_ray.engine.cluster.placement import WorkerShape
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.scheduling.state import PictureSize
from consistory_ray.engine.workers.renderer import consistory_renderer
from consistory_ray.engine.workers.worker import CONCURRENT_CALLS, RenderWorker
from consistory_ray.jobs.quality import Quality
from consistory_ray.output.assets import PNG_LEVEL
from consistory_ray.output.storage import OutputStore
from consistory_ray.plan.loaded import ALONE, Loaded

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    actor: Any
    placed: Any
    hello: Any
    deaths: int = 0
    node: str = ""
    loading_since: float | None = None  # from when its process answered
    errors: list[str] = field(default_factory=list)  # subjects of the calls in a row that failed there


class WorkerPool:
    """Slots, each with one actor at a time, named ``worker-0``, ``worker-1``, ….

    Args:
        shape: how many workers at most, and what each needs.
        model, torch_dtype: for the renderers.
        store: the output.
        options: the run's options.
        sizes: picture sizes of the plan.
        clock: seconds that only go forward.
        config, controlnets, guess_mode, pad_to, loaded: for the renderers.
        png_level: of the pictures.
        checks: names of what looks at every picture.
        quality: what the job demands of them.

    Attributes:
        last_failure: of the worker that was lost last.
        held: whether no further workers are to be asked for at the moment.
    """

    def __init__(
        self,
        shape: WorkerShape,
        model: str,
        torch_dtype: str,
        store: OutputStore,
        options: RunOptions,
        sizes: Collection[PictureSize] = (),
        clock: Callable[[], float] = time.monotonic,
        config: str | None = None,
        controlnets: tuple[str, ...] = (),
        guess_mode: bool = False,
        pad_to: int | None = None,
        png_level: int = PNG_LEVEL,
        loaded: Loaded = ALONE,
        checks: tuple[str, ...] = (),
        quality: Quality | None = None,
    ) -> None:
        self.shape = shape
        share = min(1.0, shape.num_gpus) or 1.0
        self._spec = RendererSpec(
            model,
            shape.device,
            torch_dtype,
            shape.threads,
            config=config,
            gpu_share=share,
            controlnets=controlnets,
            guess_mode=guess_mode,
            compile=options.compile,
            inputs=store.url,
            pad_to=pad_to,
            loaded=loaded,
        )
        self._store = store
        self._png_level = png_level
        self._checks = checks
        self._quality = quality
        self._options = options
        self._sizes = tuple(sizes)
        self._numbers = itertools.count()
        self._slots: dict[str, _Slot] = {}
        self._exhausted: list[float] = []  # when workers had died too often, of those that are not forgiven yet
        self._clock = clock
        self.last_failure: Failure | None = None
        self.held = False

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def exhausted(self) -> bool:
        """Whether every worker that might be asked for has died too often in a row."""
        return len(self._exhausted) >= self._most

    @property
    def hellos(self) -> dict[Any, str]:
        """What is still to be heard of: the reference of each starting worker's greeting, and its name."""
        return {slot.hello: name for name, slot in self._slots.items() if slot.hello is not None}

    @property
    def unplaced(self) -> int:
        """How many workers were asked for and have no process yet; as :meth:`overdue` has last seen it."""
        return sum(slot.hello is not None and slot.loading_since is None for slot in self._slots.values())

    @property
    def names(self) -> list[str]:
        """Of the workers, those included that are still to come up."""
        return list(self._slots)

    def actor(self, name: str) -> Any:
        """The actor handle of a worker."""
        return self._slots[name].actor

    def node_of(self, name: str) -> str:
        """The machine of a worker that is ready."""
        return self._slots[name].node

    def on_nodes(self, nodes: Collection[str]) -> list[str]:
        """The workers on these machines."""
        return [name for name, slot in self._slots.items() if slot.node in nodes]

    @property
    def _most(self) -> int:
        return max(self.shape.count, self._options.min_workers)

    def deaths(self, name: str) -> int:
        """How often a worker has died in a row."""
        return self._slots[name].deaths

    def overdue(self, seconds: float) -> list[str]:
        """Workers whose process has been there for so long and has not loaded the model yet."""
        loading = {slot.placed: name for name, slot in self._slots.items() if slot.hello is not None}
        now = self._clock()
        if loading:
            for reference in ray.wait(list(loading), num_returns=len(loading), timeout=0, fetch_local=False)[0]:
                slot = self._slots[loading[reference]]
                slot.loading_since = now if slot.loading_since is None else slot.loading_since
        return [
            name
            for name in loading.values()
            if (since := self._slots[name].loading_since) is not None and now - since > seconds
        ]

    def resize(self, wanted: int) -> int:
        """Ask for as many workers as there is work for, within the limits; those that are not ready yet may go again.

        Returns:
            How many more (or, negative, fewer) are there now.
        """
        before, now = len(self._slots), self._clock()
        self._exhausted = [since for since in self._exhausted if now - since < self._options.caps.exhausted_seconds]
        target = min(max(self._options.min_workers, wanted), self._most - len(self._exhausted))
        while len(self._slots) < target and not self.held:
            self._slots[f"worker-{next(self._numbers)}"] = self._start()
        for name in [name for name, slot in self._slots.items() if slot.hello is not None][::-1]:
            if len(self._slots) <= target:
                break
            self.release(name)
        return len(self._slots) - before

    def greeted(self, name: str, node: str) -> None:
        """The worker's greeting has arrived."""
        self._slots[name].hello = None
        self._slots[name].node = node

    def succeeded(self, name: str) -> None:
        """The worker finished a call: earlier deaths in its place no longer count."""
        self._slots[name].deaths = 0
        self._slots[name].errors.clear()

    def erred(self, name: str, subject_id: str) -> bool:
        """A call failed on the worker.

        Returns:
            Whether so many have in a row that it is the worker's fault rather than theirs.
        """
        errors, most = self._slots[name].errors, self._options.caps.worker_errors
        errors.append(subject_id)
        return len(errors) >= (most if len(set(errors[-most:])) > 1 else 2 * most)

    def lost(self, name: str, failure: Failure, *, own_fault: bool = True) -> bool:
        """The worker is gone, or of no use.

        Args:
            name: of the worker.
            failure: what became of it.
            own_fault: False if an asset was found to have taken it down, which says nothing about the worker.

        Returns:
            True if another one was asked for in its place, False if too many died there in a row.
        """
        self.last_failure = failure
        slot = self._slots.pop(name)
        _kill(slot.actor)
        deaths = slot.deaths + (own_fault and failure.fault is not Fault.NODE_DIED)
        if deaths >= self._options.caps.worker_deaths:
            self._exhausted.append(self._clock())
            return False
        self._slots[name] = self._start()
        self._slots[name].deaths = deaths
        return True

    def acquit(self, names: Collection[str]) -> None:
        """These workers' deaths were an asset's fault."""
        for name in names:
            if (slot := self._slots.get(name)) is not None:
                slot.deaths = 0

    def release(self, name: str) -> None:
        """Let a worker go; none is asked for in its place."""
        _kill(self._slots.pop(name).actor)

    def close(self) -> None:
        """End all workers."""
        for slot in self._slots.values():
            _kill(slot.actor)
        self._slots.clear()

    def _start(self) -> _Slot:
        placement: dict[str, Any] = {}
        if self._options.accelerator_type is not None:
            placement["accelerator_type"] = self._options.accelerator_type
        if self._options.label_selector:
            placement["label_selector"] = dict(self._options.label_selector)
        actor: Any = (
            ray.remote(RenderWorker)
            .options(
                num_cpus=self.shape.num_cpus,
                num_gpus=self.shape.num_gpus,
                max_restarts=0,  # a worker that comes back by itself would be one that the scheduler knows nothing of
                max_task_retries=0,
                max_concurrency=CONCURRENT_CALLS,
                **placement,
            )
            .remote(
                self._options.renderer or consistory_renderer,
                self._spec,
                self._store,
                self._png_level,
                self._checks,
                self._quality,
            )
        )
        return _Slot(actor, actor.placed.remote(), actor.hello.remote(self._sizes))


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except Exception as error:  # it is gone already, or the cluster is
        _log.debug("could not kill a worker: %s", error)
