"""How a run uses machines. Nothing here changes a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from consistory_ray.engine.faults import Caps
from consistory_ray.engine.renderer import RendererFactory, consistory_renderer
from consistory_ray.errors import InputError, Problem

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where and how to run.

    Attributes:
        address: the Ray cluster: ``"local"`` starts one on this machine, ``"auto"`` finds the one running here,
            ``"ray://host:10001"`` or ``"host:6379"`` joins another; None joins the one that the environment variable
            ``RAY_ADDRESS`` names and starts a local one where there is none. A cluster that this process has joined
            before is used as it is.
        device: what the workers render on; auto is CUDA where the cluster has GPUs.
        workers: how many; None is one per GPU, or, on CPU, one per node with all of its cores.
        cpus_per_worker, gpus_per_worker: what Ray reserves for each; None shares the cores out evenly.
        batch_size: scenes per call; None is what the job says.
        max_in_flight: calls that are with a worker at a time.
        cache_budget: bytes of anchor caches alive at a time; None is half of the cluster's object store.
        grace_seconds: how long running batches may take to finish once the run was asked to stop.
        renderer: makes each worker's renderer, in the worker.
        caps: how often what is tried again.
    """

    address: str | None = None
    device: Device = "auto"
    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float = 1.0
    batch_size: int | Literal["auto"] | None = None
    max_in_flight: int = 2
    cache_budget: int | None = None
    grace_seconds: float = 120.0
    renderer: RendererFactory = consistory_renderer
    caps: Caps = field(default_factory=Caps)

    def __post_init__(self) -> None:
        checks = [
            ("device", self.device in ("auto", "cpu", "cuda"), "choose auto, cpu or cuda"),
            ("workers", self.workers is None or self.workers >= 1, "give a number from 1"),
            ("cpus_per_worker", self.cpus_per_worker is None or self.cpus_per_worker > 0, "give a number above 0"),
            ("gpus_per_worker", self.gpus_per_worker > 0, "give a number above 0"),
            ("batch_size", self.batch_size in (None, "auto") or _from_one(self.batch_size), "give a number from 1"),
            ("max_in_flight", self.max_in_flight >= 1, "give a number from 1"),
            ("cache_budget", self.cache_budget is None or self.cache_budget > 0, "give a number of bytes above 0"),
            ("grace_seconds", self.grace_seconds >= 0, "give a number of seconds from 0"),
        ]
        problems = [Problem(name, repr(getattr(self, name)), fix) for name, good, fix in checks if not good]
        if problems:
            raise InputError("these options cannot be used", problems)


def _from_one(value: object) -> bool:
    return isinstance(value, int) and value >= 1
