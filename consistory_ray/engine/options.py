"""How a run uses machines. Nothing here changes a picture by more than rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, get_args

from consistory_ray.engine.faults import Caps
from consistory_ray.engine.rendering import RendererFactory
from consistory_ray.errors import InputError, Problem
from consistory_ray.plan.pricing import Rate

Device = Literal["auto", "cpu", "cuda"]
KeepAnchors = Literal["auto", "all", "previews", "none"]

_SHARE_FIX = "give a number above 0 up to 1, or a whole number"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where and how to run.

    Attributes:
        address: the Ray cluster: ``"local"`` starts one on this machine, ``"auto"`` finds the one running here,
            ``"ray://host:10001"`` or ``"host:6379"`` joins another; None joins the one that the environment variable
            ``RAY_ADDRESS`` names and starts a local one where there is none. A cluster that this process has joined
            before is used as it is.
        device: what the workers render on; auto is CUDA where the cluster has GPUs.
        workers: how many at most; None is one per GPU, or, on CPU, one per node with all of its cores, and follows a
            cluster that grows. Never more are asked for than there is work for.
        min_workers: how many are kept even if there is nothing left for them; with fewer ready ones the run goes on
            and says so.
        idle_seconds: how long a worker may have nothing to do before it is released, so that its machine can go.
        cpus_per_worker, gpus_per_worker: what Ray reserves for each; None shares the cores out evenly. Below 1, GPUs
            are shared.
        accelerator_type: only on nodes with these accelerators, as Ray names them: ``"H100"``, ``"L4"``.
        compile: whether workers compile the network, see
            :meth:`~consistory_ray.consistory.pipeline.ConsiStoryPipeline.compile`.
        label_selector: only on nodes with these labels, as Ray takes it: ``{"pool": "spot"}``, ``{"pool": "in(a,b)"}``.
        batch_size: scenes per call; None is what the job says.
        deterministic: fill every batch up to the batch size (4 where that is ``"auto"``) with copies of its last scene,
            which are dropped: a picture is then bit for bit the same alone, in any company and after a resume, on the
            same kind of device and with the same batch size. Small and last batches take a full one's time.
        max_in_flight: calls that are with a worker at a time.
        cache_budget: bytes of anchor caches alive at a time in the whole cluster, at most; each machine's share of its
            own object store, three quarters, is kept to in any case.
        grace_seconds: how long running batches may take to finish once the run was asked to stop.
        max_failures: stop once more pictures than that have failed; None never stops, 0 stops at the first.
        rate: what its devices cost and how long pictures take on them, for the forecast that it leaves at the output.
        max_cost: stop, as on a signal, before the workers' hours cost more than that, in the currency of ``rate``,
            which has to know the price of an hour then. Each run counts anew.
        only_failed: render only what failed in earlier runs.
        accept_below: end well although pictures fall short of the job's gate, whatever ``when_none_passes`` says.
        keep_anchors: what stays of a subject's anchors once all of its scenes are done: ``"all"``, only the pictures
            (``"previews"``), or nothing (``"none"``, with which caches are never written to the output at all).
            ``"auto"`` is all where the caches of the whole job take at most 100 GB, and previews above that. Without
            its cache a subject's anchors are made again if scenes are added, and another job cannot take it up.
        stuck_factor, stuck_seconds: a worker is killed and replaced once it has shown no progress for so many times
            the median of what its call should take, and for at least so many seconds.
        first_call_seconds: the same limit while no call has come back yet that would tell what is normal.
        lease_seconds: for how long the output is held against other runs after a sign of life.
        outage_seconds: for how long a run that has begun tries to come back to an output that is out of reach; 0 ends
            it at once. The time is counted anew once a run has gone well for as long.
        submission: the name under which a scheduler runs this job; a run that has ended under the same name, with
            failed pictures or with an error that only an edit mends, is not begun again.
        renderer: makes each worker's renderer, in the worker; None is the real one.
        caps: how often what is tried again.
    """

    address: str | None = None
    device: Device = "auto"
    workers: int | None = None
    min_workers: int = 1
    idle_seconds: float = 60.0
    cpus_per_worker: float | None = None
    gpus_per_worker: float = 1.0
    accelerator_type: str | None = None
    compile: bool = False
    label_selector: Mapping[str, str] = field(default_factory=dict)
    batch_size: int | Literal["auto"] | None = None
    deterministic: bool = False
    max_in_flight: int = 2
    cache_budget: int | None = None
    grace_seconds: float = 120.0
    max_failures: int | None = None
    rate: Rate = field(default_factory=Rate)
    max_cost: float | None = None
    only_failed: bool = False
    accept_below: bool = False
    keep_anchors: KeepAnchors = "auto"
    stuck_factor: float = 20.0
    stuck_seconds: float = 300.0
    first_call_seconds: float = 3600.0
    lease_seconds: float = 60.0
    outage_seconds: float = 1800.0
    submission: str | None = None
    renderer: RendererFactory | None = None
    caps: Caps = field(default_factory=Caps)

    def __post_init__(self) -> None:
        checks = [
            ("device", self.device in ("auto", "cpu", "cuda"), "choose auto, cpu or cuda"),
            ("workers", self.workers is None or self.workers >= 1, "give a number from 1"),
            ("min_workers", 1 <= self.min_workers <= (self.workers or self.min_workers), "give 1 up to the workers"),
            ("idle_seconds", self.idle_seconds >= 0, "give a number of seconds from 0"),
            ("cpus_per_worker", self.cpus_per_worker is None or _share(self.cpus_per_worker), _SHARE_FIX),
            ("gpus_per_worker", _share(self.gpus_per_worker), _SHARE_FIX),
            ("batch_size", self.batch_size in (None, "auto") or _from_one(self.batch_size), "give a number from 1"),
            ("max_in_flight", self.max_in_flight >= 1, "give a number from 1"),
            ("cache_budget", self.cache_budget is None or self.cache_budget > 0, "give a number of bytes above 0"),
            ("grace_seconds", self.grace_seconds >= 0, "give a number of seconds from 0"),
            ("max_failures", self.max_failures is None or self.max_failures >= 0, "give a number from 0"),
            ("max_cost", self.max_cost is None or 0 < self.max_cost < math.inf, "give an amount of money above 0"),
            (
                "rate.per_hour",
                self.max_cost is None or bool(self.rate.per_hour and 0 < self.rate.per_hour < math.inf),
                "max_cost needs the price of an hour: --price-per-gpu-hour, or an --accelerator-type of the prices",
            ),
            ("keep_anchors", self.keep_anchors in get_args(KeepAnchors), "choose auto, all, previews or none"),
            ("stuck_factor", self.stuck_factor > 1, "give a number above 1"),
            ("stuck_seconds", self.stuck_seconds > 0, "give a number of seconds above 0"),
            ("first_call_seconds", self.first_call_seconds > 0, "give a number of seconds above 0"),
            ("outage_seconds", 0 <= self.outage_seconds < math.inf, "give a number of seconds from 0"),
            ("submission", self.submission is None or 0 < len(self.submission) <= 200, "give 1 to 200 characters"),
            ("lease_seconds", 0 < self.lease_seconds <= 3600, "give a number of seconds up to 3600"),
        ]
        problems = [Problem(name, repr(attrgetter(name)(self)), fix) for name, good, fix in checks if not good]
        if problems:
            raise InputError("these options cannot be used", problems)


def _share(value: float) -> bool:
    """Whether Ray can count it: in ten-thousandths up to 1, above that in whole numbers."""
    return 1e-4 <= value <= 1 or (1 < value < math.inf and value == int(value))


def _from_one(value: object) -> bool:
    return isinstance(value, int) and value >= 1
