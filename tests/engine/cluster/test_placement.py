"""Where workers are asked to run: what the options say reaches Ray, as it is and on real nodes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from consistory_ray.engine.cluster import placement
from consistory_ray.engine.cluster.placement import (
    CACHE_SHARE,
    WorkerShape,
    cache_limits,
    check_shape,
    places,
    shape_workers,
)
from consistory_ray.engine.dispatching.pool import WorkerPool
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.options import RunOptions
from consistory_ray.errors import InputError
from consistory_ray.output.storage import open_output
from tests.patience import PATIENCE, SOON

Nodes = list[dict[str, Any]]


def nodes(*resources: Mapping[str, float], dead: int = 0, labels: Sequence[Mapping[str, str]] = ()) -> Nodes:
    """As ``ray.nodes()`` tells them; the last ``dead`` ones are not alive."""
    alive = len(resources) - dead
    return [
        {
            "NodeID": f"node-{number}",
            "Alive": number < alive,
            "Resources": dict(given),
            "Labels": dict(labels[number]) if labels else {},
        }
        for number, given in enumerate(resources)
    ]


HEAD = {"object_store_memory": 1e9}
CPU = nodes(HEAD, {"CPU": 8.0}, {"CPU": 4.0})
EQUAL = nodes(HEAD, *[{"CPU": 4.0}] * 3)
GPU = nodes(HEAD, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 8.0}, dead=1)


@pytest.mark.parametrize(
    "there, options, expected",
    [
        pytest.param(EQUAL, {}, WorkerShape(3, "cpu", 4.0, 0.0, 4), id="one for each node, with all of its cores"),
        pytest.param(CPU, {"workers": 3}, WorkerShape(3, "cpu", 4.0, 0.0, 4), id="cores are shared out"),
        pytest.param(CPU, {"workers": 1}, WorkerShape(1, "cpu", 8.0, 0.0, 8), id="no more than a node has"),
        pytest.param(CPU, {"workers": 24}, WorkerShape(24, "cpu", 0.5, 0.0, 1), id="less than a core each"),
        pytest.param(CPU, {"cpus_per_worker": 2.0}, WorkerShape(2, "cpu", 2.0, 0.0, 2), id="cores as asked for"),
        pytest.param(GPU, {}, WorkerShape(5, "cuda", 1.0, 1.0, 1), id="one for each GPU of living nodes"),
        pytest.param(GPU, {"gpus_per_worker": 0.5}, WorkerShape(10, "cuda", 1.0, 0.5, 1), id="two on each GPU"),
        pytest.param(GPU, {"gpus_per_worker": 2.0}, WorkerShape(2, "cuda", 1.0, 2.0, 1), id="two GPUs each"),
        pytest.param(GPU, {"workers": 2, "cpus_per_worker": 4.0}, WorkerShape(2, "cuda", 4.0, 1.0, 4), id="as told"),
        pytest.param(
            GPU, {"device": "cpu", "workers": 3}, WorkerShape(3, "cpu", 8.0, 0.0, 8), id="CPUs although there are GPUs"
        ),
        pytest.param(
            CPU, {"device": "cuda", "workers": 4}, WorkerShape(4, "cuda", 1.0, 1.0, 1), id="GPUs that are to come"
        ),
    ],
)
def test_workers_are_shaped_by_the_cluster_and_the_options(
    monkeypatch: pytest.MonkeyPatch, there: Nodes, options: dict[str, Any], expected: WorkerShape
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: there)
    assert shape_workers(RunOptions(**options)) == expected


def test_workers_of_unequal_machines_all_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: CPU)
    shape = shape_workers(RunOptions())
    places = sum(int(node["Resources"].get("CPU", 0.0) / shape.num_cpus) for node in CPU)
    assert shape.count == 2 and places >= shape.count


EIGHT = nodes(HEAD | {"CPU": 0.0}, {"CPU": 96.0, "GPU": 8.0})
THREES = nodes(HEAD, {"CPU": 32.0, "GPU": 3.0}, {"CPU": 32.0, "GPU": 3.0})
MIXED = nodes(
    HEAD | {"CPU": 0.0},
    {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0},
    {"CPU": 64.0, "GPU": 8.0, "accelerator_type:L4": 1.0},
    {"CPU": 16.0},
    labels=[{}, {"pool": "base", "zone": "a"}, {"pool": "spot", "zone": "b"}, {"pool": "cpu"}],
)
FEW_CPUS = nodes(HEAD, {"CPU": 4.0, "GPU": 8.0})


@pytest.mark.parametrize(
    "there, options, count, cpus",
    [
        (EIGHT, {"gpus_per_worker": 0.3}, 24, 1.0),
        (EIGHT, {"gpus_per_worker": 0.4}, 16, 1.0),
        (EIGHT, {"gpus_per_worker": 0.7}, 8, 1.0),
        (EIGHT, {"gpus_per_worker": 0.1}, 80, 1.0),
        (nodes({"CPU": 8.0, "GPU": 1.5}), {"gpus_per_worker": 0.5}, 3, 1.0),
        (THREES, {"gpus_per_worker": 2.0}, 2, 1.0),
        (THREES, {"gpus_per_worker": 3.0}, 2, 1.0),
        (MIXED, {}, 16, 1.0),
        (MIXED, {"accelerator_type": "H100"}, 8, 1.0),
        (MIXED, {"label_selector": {"pool": "spot"}}, 8, 1.0),
        (MIXED, {"label_selector": {"pool": "in(base, spot)"}}, 16, 1.0),
        (MIXED, {"label_selector": {"pool": "!spot"}}, 8, 1.0),
        (MIXED, {"label_selector": {"pool": "!in(base,spot)"}, "device": "cpu"}, 1, 16.0),
        (MIXED, {"label_selector": {"pool": "cpu"}}, 1, 16.0),
        (MIXED, {"label_selector": {"zone": "a", "pool": "base"}, "gpus_per_worker": 4.0}, 2, 1.0),
        (EIGHT, {"cpus_per_worker": 16.0}, 6, 16.0),
        (FEW_CPUS, {}, 8, 0.5),
        (nodes({"CPU": 0.0, "GPU": 2.0}), {}, 2, 0.0),
        (nodes({"CPU": 8.0}, {"CPU": 4.0}), {"cpus_per_worker": 6.0}, 1, 6.0),
    ],
)
def test_no_more_workers_are_asked_for_than_find_a_place(
    monkeypatch: pytest.MonkeyPatch, there: Nodes, options: dict[str, Any], count: int, cpus: float
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: there)
    shape = shape_workers(RunOptions(**options))
    assert (shape.count, shape.num_cpus) == (count, cpus)
    assert places(RunOptions(**options), shape) >= count


@pytest.mark.parametrize(
    "there, options, field, value, known",
    [
        (GPU, {"gpus_per_worker": 8.0}, "gpus_per_worker", "8", "more than 4 GPUs"),
        (THREES, {"gpus_per_worker": 4.0}, "gpus_per_worker", "4", "more than 3 GPUs"),
        (MIXED, {"accelerator_type": "A100"}, "accelerator_type", "A100", "H100, L4"),
        (EIGHT, {"accelerator_type": "H100"}, "accelerator_type", "H100", "without a name"),
        (MIXED, {"label_selector": {"pool": "dear"}}, "label_selector", "pool=dear", "pool=base, pool=cpu, pool=spot"),
        (EIGHT, {"label_selector": {"pool": "spot"}}, "label_selector", "pool=spot", "no such labels"),
        (
            MIXED,
            {"accelerator_type": "H100", "label_selector": {"pool": "spot"}},
            "label_selector",
            "pool=spot",
            "pool=base",
        ),
        (MIXED, {"device": "cuda", "label_selector": {"pool": "cpu"}}, "device", "cuda", "more than 0 GPUs"),
        (EIGHT, {"cpus_per_worker": 128.0}, "cpus_per_worker", "128", "more than 96 CPUs"),
        (CPU, {"cpus_per_worker": 16.0}, "cpus_per_worker", "16", "more than 8 CPUs"),
        (nodes(HEAD | {"CPU": 0.0}), {"device": "cpu"}, "device", "cpu", "num-cpus is 0"),
        (nodes(HEAD | {"CPU": 0.0}), {"device": "cuda"}, "device", "cuda", "--device cpu"),
    ],
)
def test_workers_without_a_place_are_refused_unless_nodes_will_start(
    monkeypatch: pytest.MonkeyPatch, there: Nodes, options: dict[str, Any], field: str, value: str, known: str
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: there)
    with pytest.raises(InputError) as refused:
        shape_workers(RunOptions(**options))
    (problem,) = refused.value.problems
    assert (problem.path, problem.value) == (field, value)
    assert known in problem.fix and "--workers" in problem.fix, problem.fix
    given = RunOptions(**options, workers=3)
    shape = shape_workers(given)
    assert shape.count == 3 and places(given, shape) == 0
    with pytest.raises(InputError) as refused:
        check_shape(given, shape, "miniature", grows=False)  # a Ray of its own: no machine ever comes
    assert "--workers" not in refused.value.problems[0].fix


def test_a_label_selector_that_ray_would_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: MIXED)
    with pytest.raises(InputError, match="label selector"):
        shape_workers(RunOptions(label_selector={"pool": "in(spot"}))


@pytest.mark.parametrize(
    "address, variable", [("auto", ""), ("head:6379", ""), ("ray://head:10001", ""), (None, "head:6379")]
)
def test_an_open_device_is_no_cpu_where_gpu_nodes_may_still_start(
    monkeypatch: pytest.MonkeyPatch, address: str | None, variable: str
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(HEAD | {"CPU": 4.0}))
    monkeypatch.setenv("RAY_ADDRESS", variable)
    model = "stabilityai/stable-diffusion-xl-base-1.0"
    open_device = RunOptions(address=address)
    shape = shape_workers(open_device)
    with pytest.raises(InputError) as refused:
        check_shape(open_device, shape, model, grows=True)
    assert "--device cuda --workers N" in str(refused.value.problems[0].fix)
    check_shape(open_device, shape, "miniature", grows=True)
    for given in (RunOptions(address=address, device="cpu"), RunOptions(address=address, device="cuda", workers=2)):
        check_shape(given, shape_workers(given), model, grows=True)
    check_shape(RunOptions(address="local"), shape, model, grows=False)


def test_each_machine_has_room_for_its_own_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ray, "nodes", lambda: nodes(HEAD, {"CPU": 8.0, "object_store_memory": 16e9}, {"CPU": 8.0}, HEAD, dead=1)
    )
    known = {"node-0": int(CACHE_SHARE * 1e9), "node-1": int(CACHE_SHARE * 16e9), "node-2": placement.UNKNOWN_STORE}
    assert cache_limits() == known


def test_gpus_that_nobody_has_and_nobody_may_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: CPU)
    with pytest.raises(InputError, match="no GPU"):
        shape_workers(RunOptions(device="cuda"))


@pytest.mark.parametrize("wrong", [{"gpus_per_worker": 1.5}, {"gpus_per_worker": 1e-5}, {"cpus_per_worker": 2.5}])
def test_shares_that_ray_cannot_count_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        RunOptions(**wrong)
    assert "whole number" in refused.value.problems[0].fix


class Actor:
    """Whatever it is asked for, the answer is still to come."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: object())


class Asked:
    """Stands in for ``ray.remote``: notes down what is asked for; what was killed is noted down, too."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.killed = 0

    def remote(self, kind: type) -> Any:
        """An actor class whose actors do nothing."""
        asked = self

        class ActorClass:
            @staticmethod
            def options(**given: Any) -> Any:
                asked.options.append(given)
                return SimpleNamespace(remote=lambda *arguments: Actor())

        return ActorClass

    def kill(self, actor: object, no_restart: bool) -> None:
        """One less."""
        self.killed += 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the pool asks Ray for."""
    stand_in = Asked()
    monkeypatch.setattr(ray, "remote", stand_in.remote)
    monkeypatch.setattr(ray, "kill", stand_in.kill)
    return stand_in


def pool(shape: WorkerShape, tmp_path: Path, **options: Any) -> WorkerPool:
    """The workers of a run."""
    return WorkerPool(shape, "fake", "auto", open_output(tmp_path), RunOptions(**options))


def test_all_of_it_reaches_ray(asked: Asked, tmp_path: Path) -> None:
    """And a replacement is asked for in the same way."""
    shape = WorkerShape(2, "cuda", 3.0, 0.25, 3)
    label = {"pool": "in(spot,cheap)", "zone": "!a"}
    own = pool(shape, tmp_path, accelerator_type="L4", label_selector=label, gpus_per_worker=0.25)
    own.resize(1)
    (name,) = own.hellos.values()
    own.greeted(name, "node")
    assert own.lost(name, Failure(Fault.WORKER_DIED, "ActorDiedError", "it died"))
    first, replacement = asked.options
    assert first == replacement
    wanted = {"num_cpus": 3.0, "num_gpus": 0.25, "accelerator_type": "L4", "label_selector": label}
    assert first.items() >= wanted.items()
    assert (first["max_restarts"], first["max_task_retries"]) == (0, 0)


def test_nothing_is_asked_for_that_was_not_given(asked: Asked, tmp_path: Path) -> None:
    pool(WorkerShape(1, "cpu", 1.0, 0.0, 1), tmp_path).resize(1)
    (given,) = asked.options
    assert not {"accelerator_type", "label_selector"} & set(given)
    assert (given["num_cpus"], given["num_gpus"]) == (1.0, 0.0)


def test_there_are_never_more_workers_than_the_most_or_fewer_than_the_least(asked: Asked, tmp_path: Path) -> None:
    own = pool(WorkerShape(5, "cpu", 1.0, 0.0, 1), tmp_path, workers=5, min_workers=2)
    assert [own.resize(wanted) for wanted in (0, 3, 99, 99)] == [2, 1, 2, 0]
    assert len(own) == len(asked.options) == 5
    ready = list(own.hellos.values())[:3]
    for name in ready:
        own.greeted(name, "node")
    assert own.resize(0) == -2, "workers that are not ready may go again, those that are ready stay"
    assert sorted(own.on_nodes({"node"})) == sorted(ready) and asked.killed == 2
    assert own.resize(99) == 2


HOST = """
import json, sys
from ray.cluster_utils import Cluster

small = {"object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0})
spot = {"resources": {"accelerator_type:L4": 1}, "labels": {"pool": "spot"}}
names = {
    "spot": cluster.add_node(num_cpus=2, num_gpus=1, **spot, **small),
    "base": cluster.add_node(num_cpus=4, num_gpus=2, labels={"pool": "base"}, **small),
}
print(json.dumps({"address": cluster.address} | {name: node.node_id for name, node in names.items()}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""

RENDER = """
import json, os, sys, time
import ray
from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.options import RunOptions
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer

class Placed(FakeRenderer):
    def __init__(self, spec, **options):
        context = ray.get_runtime_context()
        placed = {"node": context.get_node_id(), "device": spec.device, "resources": context.get_assigned_resources()}
        placed["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        folder, workers, patience = options.pop("folder"), options.pop("workers"), options.pop("patience")
        with open(os.path.join(folder, f"{os.getpid()}.json"), "w") as file:
            json.dump(placed, file)
        late = time.monotonic() + patience  # the first ones would be through with everything before the last one is up
        while len(os.listdir(folder)) < workers and time.monotonic() < late:
            time.sleep(0.1)
        super().__init__(spec, **options)

address, folder, patience = sys.argv[1:]
cat = {"id": "cat", "concept": "cat", "anchors": ["a cat at home"], "scenes": [f"cat {n}" for n in range(24)]}
plan = make_plan(parse_job({"model": "fake", "subjects": [cat]}))
ray.init(address=address, log_to_driver=False)
for number, options in enumerate(json.loads(sys.stdin.read())):
    os.mkdir(found := os.path.join(folder, str(number)))
    all_of_them = {"workers": options.get("workers", 1), "patience": float(patience)}
    factory = Placed.factory(folder=found, seconds=0.2, anchor_seconds=0.0, **all_of_them)
    summary = run_plan(plan, os.path.join(folder, f"out-{number}"), RunOptions(renderer=factory, **options))
    assert summary.state == "complete", summary
"""


@pytest.mark.slow
def test_real_workers_run_where_they_may(tmp_path: Path) -> None:
    """A node with an L4, labelled pool=spot, and one with two GPUs of no name, labelled pool=base."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    runs: list[dict[str, Any]] = [
        {"label_selector": {"pool": "base"}, "gpus_per_worker": 0.5, "workers": 4},
        {"accelerator_type": "L4"},
        {"label_selector": {"pool": "!spot"}, "gpus_per_worker": 2.0},
        {"device": "cpu", "label_selector": {"pool": "in(spot,other)"}, "workers": 2, "cpus_per_worker": 1.0},
    ]
    host = [sys.executable, "-c", HOST]
    with subprocess.Popen(host, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        told = json.loads(cluster.stdout.readline())
        command = [sys.executable, "-c", RENDER, told["address"], str(tmp_path), str(SOON)]
        try:
            subprocess.run(command, input=json.dumps(runs), text=True, check=True, timeout=PATIENCE, env=environment)
        finally:
            cluster.stdin.close()
    found = [
        [json.loads(path.read_text()) for path in (tmp_path / str(number)).iterdir()] for number in range(len(runs))
    ]
    halves, named, pairs, cpus = found
    assert len(halves) == 4 and {worker["node"] for worker in halves} == {told["base"]}
    assert {worker["resources"]["GPU"] for worker in halves} == {0.5}
    assert sorted(worker["visible"] for worker in halves) == ["0", "0", "1", "1"], "two share each GPU"
    assert named and {worker["node"] for worker in named} == {told["spot"]}
    assert len(pairs) == 1 and pairs[0]["node"] == told["base"] and pairs[0]["visible"] == "0,1"
    assert len(cpus) == 2 and {worker["node"] for worker in cpus} == {told["spot"]}
    assert {worker["device"] for worker in cpus} == {"cpu"} and not any("GPU" in w["resources"] for w in cpus)
    assert {worker["device"] for worker in halves + named + pairs} == {"cuda"}
