"""The engine's benchmarks: what they print, and that the model of a cluster behaves as its docstring says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.engine import main
from benchmarks.engine_model import books, real, sweeps
from benchmarks.engine_model.simulation import Costs, Outcome, Setup, Simulation
from benchmarks.throughput import Settings, Watch, measure, result, worker_counts
from consistory_ray.engine.events import BatchDone
from consistory_ray.jobs.job import load_job
from consistory_ray.output.index.index import read_index
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import Span

FREE = Costs(call_ms=0.0, picture_ms=0.0, write_seconds=0.0, latency=0.0, picture_bytes=0.0, cache_bytes=0.0)


def simulate(setup: Setup, costs: Costs = FREE) -> Outcome:
    return Simulation(setup, costs).run()


def test_quick_run_prints_every_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = main(
        ["--quick", "--book-pictures", "200", "--million", "300", "--simulate", "1,64", "--out", str(tmp_path)]
    )
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = json.loads((tmp_path / "engine.json").read_text())
    assert stored.pop("stamp")["command"] and stored == printed
    assert printed.keys() == found.keys()
    assert printed["books_ms_by_pictures"].keys() == {"200"}
    assert 0 < printed["plan_1m_rss_gb"] < 1.5
    assert 0 < printed["resume_1m_seconds"] < 60
    assert 0 < printed["busy_64"] <= 1
    assert printed["busy_64_source"] == "simulated"
    assert printed["moved_mb_per_picture"]["sticky"] < printed["moved_mb_per_picture"]["random"]
    assert {item["case"] for item in printed["simulated"]} > {"no stickiness", "one subject"}
    assert (tmp_path / "engine.png").stat().st_size > 10_000


@pytest.mark.parametrize("workers", [1, 5, 16])
def test_without_costs_all_workers_are_always_busy(workers: int) -> None:
    setup = Setup(workers=workers, pictures_per_worker=96, scenes=96, batch_size=4)
    outcome = simulate(setup)
    assert outcome.pictures == workers * (96 + 2)
    assert outcome.seconds == pytest.approx(98 * FREE.picture_seconds)
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.moved_bytes == 0


def test_the_coordinator_bounds_the_rate() -> None:
    outcome = simulate(Setup(workers=64, batch_size=1), replace(FREE, picture_ms=10.0))
    assert outcome.pictures_per_second == pytest.approx(100, rel=0.01)
    assert outcome.coordinator_load > 0.99
    assert outcome.efficiency < 0.35


def test_one_call_in_flight_waits_for_the_coordinator_and_two_do_not() -> None:
    slow = replace(FREE, latency=0.1)
    one, two = (simulate(Setup(workers=4, scenes=400, pictures_per_worker=400, max_in_flight=n), slow) for n in (1, 2))
    assert one.busy == pytest.approx(0.8, abs=0.02)  # 0.8 s of work, then 0.2 s until the next call
    assert two.busy > 0.99


def test_a_cache_goes_to_every_further_node_once() -> None:
    costs = replace(FREE, cache_bytes=1e9)
    outcome = simulate(Setup(workers=32, scenes=10**6, workers_per_node=8), costs)
    assert outcome.moved_bytes == 3e9
    assert simulate(Setup(workers=8, scenes=10**6, workers_per_node=8), costs).moved_bytes == 0
    slower = simulate(Setup(workers=32, scenes=10**6, workers_per_node=8), replace(costs, link_gbit=1.0))
    assert slower.seconds > outcome.seconds + 5


@pytest.mark.parametrize("scenes", [4, 10, 50])
@pytest.mark.parametrize("gpus, pods", [(8, 1), (8, 4), (1, 8)])
def test_pods_with_the_charts_default_memory_are_busy(gpus: int, pods: int, scenes: int) -> None:
    """Costs of SDXL, with what comes between an anchor's last step and its subject's first scene."""
    setup = Setup(
        workers=gpus * pods,
        workers_per_node=gpus,
        pictures_per_worker=200,
        scenes=scenes,
        budget_per_node=sweeps.pods_of(sweeps.CACHE_GIB, gpus),
    )
    outcome = simulate(setup, sweeps.POD)
    assert outcome.busy >= 0.97 and outcome.efficiency >= 0.97, outcome
    starved = simulate(replace(setup, budget_per_node=sweeps.pods_of(2, gpus)), sweeps.POD)
    assert starved.busy < outcome.busy, "memory for caches makes no difference: the simulation does not see it"


def test_the_simulation_knows_the_charts_default() -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "helm/consistory-ray/values.yaml").read_text())
    assert values["worker"]["cacheMemory"] == f"{sweeps.CACHE_GIB}Gi"


def test_stickiness_saves_transfers() -> None:
    costs = replace(sweeps.SDXL, cache_bytes=1e8)
    sticky, restless = (simulate(Setup(workers=32, sticky=sticky), costs) for sticky in (True, False))
    assert sticky.moved_bytes * 10 < restless.moved_bytes
    assert sticky.pictures == restless.pictures


def test_a_simulation_without_the_scheduler_s_time_repeats_exactly() -> None:
    setup = Setup(workers=16, sticky=False)
    first, second = (simulate(setup, sweeps.SDXL) for _ in range(2))
    assert replace(first, scheduler_ms=0.0) == replace(second, scheduler_ms=0.0)


def test_the_knee_is_before_the_first_fall() -> None:
    def at(workers: int, efficiency: float) -> Outcome:
        return Outcome(workers, 1, 1.0, efficiency, 1.0, 0.0, 0.0, 0.0)

    assert sweeps.knee([at(8, 0.96), at(1, 0.99), at(64, 0.5), at(512, 0.97)]) == 8
    assert sweeps.knee([at(1, 0.5)]) == 0


def test_books_are_kept_as_in_a_run(tmp_path: Path) -> None:
    books.write_job(tmp_path / "job.csv", 120, 50)
    plan = make_plan(load_job(str(tmp_path / "job.csv")))
    assert (plan.scene_count, plan.anchor_count) == (120, 6)
    store = open_output(tmp_path / "out")
    assert books.keep_books(plan, store, workers=3, batch_size=4) == 126
    rows = read_index(store).to_pylist()
    assert {row["asset_id"] for row in rows} == {asset.asset_id for asset in plan.assets()}
    assert all(row["status"] == "ok" for row in rows)


def test_a_listed_store_lists_what_is_not_there(tmp_path: Path) -> None:
    books.write_job(tmp_path / "job.csv", 2, 50)
    plain, plan = open_output(tmp_path / "out"), make_plan(load_job(str(tmp_path / "job.csv")))
    plain.write_atomic("index/part", b"data")
    store = books.ListedStore(plain.fs, plain.root, plan)
    assert [file.path for file in store.iter_files("images")] == [asset.path for asset in plan.subjects[0].scenes]
    assert [file.path for file in store.list_files("index")] == ["index/part"]


def test_busy_is_the_share_of_the_steady_window() -> None:
    spans = [Span(1, "scenes", "s", 4, 0.0, 10.0), Span(2, "scenes", "s", 4, 2.0, 4.0), Span(2, "", "", 4, 6.0, 9.0)]
    assert real.steady_window(spans) == (2.0, 9.0)
    assert real.busy_share(spans, 2.0, 9.0) == pytest.approx((7 + 5) / 14)
    assert real.rate(spans, 2.0, 9.0) == pytest.approx((4 * 0.7 + 4 + 4) / 7)
    assert real.rate(spans, 9.0, 2.0) == 0


def test_worker_counts_are_powers_of_two_and_all() -> None:
    assert worker_counts(None, 8) == [1, 2, 4, 8]
    assert worker_counts(None, 6) == [1, 2, 4, 6]
    assert worker_counts(None, 0) == [1]
    assert worker_counts("3,5", 8) == [3, 5]


def test_time_is_split_by_what_follows_what() -> None:
    watch = Watch()
    watch(BatchDone("w", "anchors", 2, {"pass1": 2.0, "pass2": 2.0, "decode": 1.0, "encode": 0.5, "write": 0.1}))
    watch(BatchDone("w", "scenes", 4, {"load": 0.5, "scenes": 8.0, "encode": 1.0}, 1.5, 10**9, 2 * 10**9))
    assert watch.split() == {
        "idle": 1.5, "anchors": 4.0, "decode": 1.0, "encode": 1.5, "write": 0.1, "load": 0.5, "scenes": 8.0
    }  # fmt: skip
    found = result(watch, workers=1, pictures=6, seconds=12.0, joules=600.0)
    assert found["idle_share"] == pytest.approx(1.5 / 15, abs=1e-4)
    assert (found["pictures_per_second"], found["joules_per_picture"]) == (0.5, 100.0)
    assert (found["device_memory_gb"], found["cache_mb_per_picture"]) == (2.0, pytest.approx(1000 / 6, abs=1e-3))


def test_throughput_of_fake_workers(ray_cluster: None) -> None:
    found = measure(Settings(model="fake", device="cpu", subjects=1, scenes=6, fake_seconds=0.05), 2)
    assert (found["workers"], found["pictures"]) == (2, 16)
    assert found["per_worker"] <= 1 / 0.05
    assert found["split"]["scenes"] >= 0.05 * 12 / 16 * 0.99
    assert found["joules_per_picture"] is None
