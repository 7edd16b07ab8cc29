"""A gated run's parts in one process, without Ray: whatever dies when, each take is made once and the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.engine.faults import Failure
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.state import Call
from consistory_ray.engine.takes import TakeKeeper
from consistory_ray.engine.workers.worker import RenderWorker
from consistory_ray.engine.workload import Workload, missing_pictures, subject_works
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.asked import asked_plan
from consistory_ray.output.decisions import Decision, read_decisions, write_decisions
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.takes import chosen_rows
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.resume import resume
from consistory_ray.output.standing import gate_of, take_in
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Asset, Plan, make_plan
from consistory_ray.plan.takes import take_of, without
from consistory_ray.quality.gate import Verdict
from consistory_ray.testing import FakeMetric, FakeRenderer

SCENES = 4
GATES: dict[str, dict[str, Any]] = {
    "none": {},
    "low": {"threshold": 0.2, "max_takes": 3},
    "high": {"threshold": 0.7, "max_takes": 3},
    "more": {"threshold": 0.7, "max_takes": 5},
    "less": {"threshold": 0.7, "max_takes": 2},
    "median": {"within": 0.0, "max_takes": 3},
}


def plan_of(gate: str, takes: int = 1) -> Plan:
    """Two subjects of four scenes under a gate, so many takes of which are made in any case."""
    subjects = [
        {"id": f"cat-{n}", "concept": "cat", "subject": "a cat", "anchors": [f"at home {n}"], "scenes": scenes}
        for n, scenes in enumerate([[f"at place {number}" for number in range(SCENES)]] * 2)
    ]
    quality = {"metric": "consistory_ray.testing:FakeMetric", "measure": "alignment", **GATES[gate]}
    more = {} if gate == "none" else {"quality": quality}
    return make_plan(parse_job({"name": "gated", "model": "fake", "takes": takes, "subjects": subjects, **more}))


def score(asset: Asset) -> float:
    """What the gate finds in a take."""
    return round(float(FakeMetric().align([FakeRenderer().picture(asset.asset_id)], [asset.prompt])[0]), 6)


class Session:
    """One run: what the coordinator does, with workers that are called instead of sent for.

    Attributes:
        rendered: ids of the pictures that its renderer made.
    """

    def __init__(self, plan: Plan, folder: Path, faults: dict[str, Any]) -> None:
        self.store = open_output(str(folder))
        plan = self.plan = asked_plan(plan, read_decisions(self.store)[0])
        self.takes = TakeKeeper(plan)
        spec = RendererSpec("fake", "cpu", "auto", 1)
        self.worker = RenderWorker(FakeRenderer.factory(faults=faults), spec, self.store, quality=plan.quality)
        self.rendered: list[str] = []
        self.ledger = Ledger("fake", IndexWriter(self.store, seconds_per_part=1e9), lambda event: None, "f" * 64)

    def run(self, calls: int, kept: bool, only_failed: bool, order: Callable[[int], int]) -> bool:
        """Run for so many calls; then it dies, and its rows were committed or not.

        Returns:
            Whether it came to its end.
        """
        plan, takes = self.plan, self.takes
        paths = {asset.asset_id: asset.path for asset in plan.assets()} | takes.possible()
        found = resume(self.store, paths)
        self.plan = plan = without(plan, plan.decided.rejected - found.done)
        takes.begin(self.store, found.done, only_failed=only_failed)
        self.work = Workload.of(plan, found.done, found.failed, only_failed=only_failed, keep="none", takes=takes)
        self.assets = {asset.asset_id: asset for asset in (*plan.assets(), *takes.to_make())}
        self.subjects = {subject.subject_id: subject for subject in plan.subjects}
        works = subject_works(plan, self.work.done, dict.fromkeys(self.subjects, 1), takes.to_make())
        self.scheduler = Scheduler(works, batch_size=2)
        self.scheduler.add_worker("worker-0")
        out: list[Any] = []
        while not self.scheduler.finished:
            out += self.scheduler.assign()
            call = out.pop(order(len(out)))
            if calls == 0:
                if kept:
                    self.ledger.flush()
                return False
            calls -= 1
            self._call(call)
        self.ledger.close(merge=True)
        left = self.work.planned - self.work.found - self.ledger.rendered - self.ledger.scored - self.ledger.failed
        assert left == 0, "the books are not even"
        given_up = self.ledger.given_up
        assert not missing_pictures(self.store, plan, self.work.expected, given_up, "none")
        return True

    def _call(self, call: Call) -> None:
        subject = self.subjects[call.subject_id]
        if call.kind == "anchors":
            report, _ = self.worker.anchors(subject, bool(call.assets))
        else:
            scenes = [self.assets[asset_id] for asset_id in call.assets]
            there = self.takes.there(call.assets)
            self.rendered += [scene.asset_id for scene in scenes if scene.asset_id not in there]
            report = self.worker.scenes(subject, scenes, self._cache(subject), "", there)
        if isinstance(report, Failure):
            self._give_up(call, self.scheduler.failed(call, report.fault), {}, report)
            return
        if call.kind == "scenes":
            self._ask_for(self.takes.came(report, self.assets))
        faults = {asset_id: failure.fault for asset_id, failure in report.failures.items()}
        given_up = self.scheduler.done(call, faults, 1)
        anchors = {anchor.asset_id: anchor for anchor in subject.anchors}
        for item in report.delivered:
            asset = anchors.get(item.asset_id) or self.assets[item.asset_id]
            self.ledger.delivered(asset, subject, item, "worker-0", 1, again=item.asset_id not in call.assets)
        for asset_id, found in report.looked.items():
            self.ledger.looked_at(self.assets[asset_id], self.takes.row(asset_id), found, "worker-0", 1)
        self._give_up(call, given_up, report.failures, None)

    def _give_up(
        self, call: Call, given_up: tuple[str, ...], each: Mapping[str, Failure], whole: Failure | None
    ) -> None:
        for asset_id in given_up:
            failure = each.get(asset_id, whole)
            assert failure is not None
            asset = self.assets[asset_id]
            self.ledger.gave_up(asset, self.subjects[call.subject_id], str(failure), failure.fault, "worker-0", 1)
            self._ask_for(self.takes.failed(asset))

    def _cache(self, subject: Any) -> Any:
        return FakeRenderer(RendererSpec("fake", "cpu", "auto", 1)).make_subject(subject).cache_buffer

    def _ask_for(self, takes: list[Asset]) -> None:
        for take in takes:
            if self.scheduler.add_scenes(take.subject_id, [take.asset_id]):
                self.assets[take.asset_id] = take
                self.takes.expect([take])


def check(plan: Plan, folder: Path) -> None:
    """Takes have their own scores and lie in a row; the best one is chosen; nothing is open."""
    table = read_index(str(folder))
    rows = {row["asset_id"]: row for row in table.to_pylist()}
    pictures = chosen_rows(table).to_pylist()
    assert all(row["status"] == "ok" for row in pictures)
    failed = [row for row in rows.values() if row["status"] != "ok"]
    assert all(row["take_of"] for row in failed), "but for takes that nobody wants any more, as after a lower bar"
    chosen = {row["take_of"] or row["asset_id"]: row["asset_id"] for row in pictures}
    decided = asked_plan(plan, read_decisions(str(folder))[0])
    gone = decided.decided.rejected - rows.keys()
    assert set(chosen) | gone == {asset.asset_id for asset in plan.assets() if not asset.take_of} | gone
    assert {asset.asset_id for asset in decided.assets()} - gone <= rows.keys(), "what was asked for is there"
    gate = gate_of(decided)
    assert gate is not None and not take_in(gate, decided, table), "a picture without a score"
    for scene in (scene for subject in plan.subjects for scene in subject.scenes):
        numbers = sorted(row["take"] for row in rows.values() if (row["take_of"] or row["asset_id"]) == scene.asset_id)
        takes = [take_of(scene, number) for number in numbers]
        takes = [take for take in takes if rows[take.asset_id]["status"] == "ok"]
        if not takes:
            assert scene.asset_id in gone
            continue
        assert [rows[take.asset_id]["score"] for take in takes] == [score(take) for take in takes]
        best = max(takes, key=lambda take: (score(take), -take.take))
        assert chosen[scene.asset_id] == best.asset_id and gate.best(scene.asset_id) == (best.take, score(best))
        assert gate.verdict(scene.asset_id) is not Verdict.OPEN
    gallery = {path.relative_to(folder).as_posix() for path in folder.rglob("images/**/*.png")}
    indexed = {row["path"] for row in rows.values() if row["kind"] == "scene" and row["status"] == "ok"}
    assert indexed <= gallery
    assert all("/takes/" in path for path in gallery - indexed), "of a run that died, and that no later one asks for"


def files(folder: Path) -> dict[Path, int]:
    """When each picture was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("images/**/*.png")}


def decide(data: st.DataObject, folder: Path) -> None:
    """Somebody rejects a take, and maybe deletes it, or asks for one more."""
    scenes = [scene for subject in plan_of("none").subjects for scene in subject.scenes]
    store, scene = open_output(str(folder)), data.draw(st.sampled_from(scenes))
    names, what = (scene.subject_id, scene.scene_id), data.draw(st.sampled_from(["", "reject", "reroll"]))
    if what == "reject":
        take = take_of(scene, data.draw(st.integers(1, 2)))
        write_decisions(store, [Decision(scene.asset_id, take.asset_id, *names, "reject", "mia")])
        if data.draw(st.booleans()):
            (folder / take.path).unlink(missing_ok=True)
    elif what == "reroll":
        number = data.draw(st.integers(2, 6))
        write_decisions(store, [Decision(scene.asset_id, scene.asset_id, *names, "reroll", "mia", take=number)])


@settings(max_examples=12)
@given(st.data())
def test_whatever_dies_and_is_edited_each_take_is_made_once(data: st.DataObject) -> None:
    """Runs die after some calls, with rows committed or lost; the gate is edited; some takes fail and are retried."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "out"
        for gate in data.draw(st.lists(st.sampled_from(sorted(GATES)), max_size=3)):
            bad = data.draw(st.sampled_from(["", "cat-0/at-place-1", "cat-1/at-place-2.2"]))
            retries = data.draw(st.booleans()) and (folder / "index").exists()
            decide(data, folder)
            before = files(folder)
            takes = data.draw(st.integers(1, 2))
            session = Session(plan_of(gate, takes), folder, {bad: "bad"} if bad else {})
            session.run(data.draw(st.integers(0, 9)), data.draw(st.booleans()), retries, lambda count: 0)
            assert before.items() <= files(folder).items(), "a take that was there was made again"
        takes = data.draw(st.integers(1, 2))
        plan = plan_of(data.draw(st.sampled_from(["low", "high", "more", "less", "median"])), takes)
        pick, before = data.draw(st.integers(0, 3)), files(folder)
        assert Session(plan, folder, {}).run(1000, True, only_failed=False, order=lambda count: pick % count)
        assert before.items() <= files(folder).items(), "a take that was there was made again"
        check(plan, folder)
        again = Session(plan, folder, {})
        assert again.run(1000, True, only_failed=False, order=lambda count: 0) and not again.rendered
