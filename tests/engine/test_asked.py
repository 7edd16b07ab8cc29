"""Takes that are made in any case, and what people ask for in a review, on real Ray workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from consistory_ray.engine.events import Event, Notice, RunSummary
from consistory_ray.engine.scoring.evaluate import scorable
from consistory_ray.errors import JobError
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.jobs.quality import Quality
from consistory_ray.jobs.subject import Scene
from consistory_ray.output.asked import asked_plan
from consistory_ray.output.decisions import DECISIONS_FOLDER, Action, Decision, read_decisions, write_decisions
from consistory_ray.output.index.index import read_index
from consistory_ray.output.shards import write_dataset
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Asset, Plan, make_plan
from consistory_ray.plan.takes import take_of
from consistory_ray.watch.status import Status, StatusFollower, read_status
from tests.engine.test_takes import gated, made, run, score

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeJob = Callable[..., RenderJob]


def decide(out: Path, scene: Asset, action: Action, take: int | None = None, about: Asset | None = None) -> Decision:
    """Somebody decides about a scene of an output, or about another take of it than the first."""
    asset_id = (about or scene).asset_id
    one = Decision(scene.asset_id, asset_id, scene.subject_id, scene.scene_id, action, "mia", take=take)
    write_decisions(open_output(str(out)), [one])
    return one


def undo(out: Path, decision: Decision) -> None:
    """Somebody takes a decision back."""
    names = (decision.picture_id, decision.asset_id, decision.subject, decision.scene)
    write_decisions(open_output(str(out)), [Decision(*names, "undo", "mia", undoes=decision.decision_id)])


def files(out: Path) -> dict[str, tuple[int, int]]:
    """Which pictures there are, and marks that change when one is written."""
    found = {path.relative_to(out).as_posix(): path.stat() for path in out.rglob("images/**/*.png")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def status(plan: Plan, out: Path) -> Status:
    return read_status(plan, open_output(str(out)))


def scenes_of(plan: Plan) -> list[Asset]:
    return [scene for subject in plan.subjects for scene in subject.scenes]


def even(summary: RunSummary) -> bool:
    """Whether a run's books are."""
    return summary.planned == summary.found + summary.rendered + summary.failed + summary.scored


def test_so_many_takes_of_each_scene_are_made_and_counted(make_job: MakeJob, tmp_path: Path) -> None:
    job, out = make_job(subjects=2, scenes=4), tmp_path / "out"
    plain, plan = make_plan(job), make_plan(job.with_takes(3))
    assert [subject.scenes for subject in plain.subjects] == [subject.scenes for subject in plan.subjects]
    assert (plan.scene_count, plan.take_count, len(list(plan.assets()))) == (8, 16, 4 + 24)
    summary = run(plan, out)
    assert (summary.state, summary.planned, summary.rendered, summary.takes) == ("complete", 28, 28, 16)
    assert not summary.gated and made(out) == 24 and even(summary)
    rows = {row["asset_id"]: row for row in read_index(out).to_pylist()}
    for scene in scenes_of(plan):
        for take in (take_of(scene, number) for number in (1, 2, 3)):
            row = rows[take.asset_id]
            assert (row["path"], row["seed"], row["take"], row["score"]) == (take.path, take.seed, take.take, None)
            assert (out / take.path).is_file()
    told = status(plan, out)
    assert (told.planned, told.done, told.todo, told.takes, told.gated) == (28, 28, 0, 16, False)
    assert [subject.planned for subject in told.subjects] == [14, 14]
    before = files(out)
    assert run(plain, out).rendered == 0, "what is not asked for any more stays, and is not missed"
    more = run(make_plan(job.with_takes(4)), out)
    assert (more.rendered, more.takes, more.found) == (8, 8, 28)
    assert files(out).items() >= before.items()


def test_a_job_says_its_number_and_a_gate_allows_for_it(make_job: MakeJob) -> None:
    job = make_job()
    assert [make_plan(job.with_takes(number)).take_count for number in (1, 2)] == [0, make_plan(job).scene_count]
    for number in (0, 65):
        with pytest.raises(JobError, match="1 to 64"):
            job.with_takes(number)
    gate = Quality(metric="colours", threshold=0.5, max_takes=2)
    with pytest.raises(JobError, match=r"quality\.max_takes: write 3 to 64"):
        job.model_copy(update={"quality": gate}).with_takes(3)
    written = {**job.model_dump(mode="json", exclude_unset=True), "quality": {"metric": "colours", "threshold": 0.5}}
    with pytest.raises(JobError, match=r"quality\.max_takes: write 4 to 64.*got 3"):
        parse_job({**written, "takes": 4})
    assert parse_job({**written, "takes": 3}).takes == 3
    with pytest.raises(JobError, match="takes: write a whole number from 1 to 64"):
        parse_job({**written, "takes": 0})


def test_a_gate_asks_once_the_takes_that_are_made_anyway_have_come(make_job: MakeJob, tmp_path: Path) -> None:
    job, out = make_job(subjects=2, scenes=6), tmp_path / "out"
    plan = gated(job.with_takes(2), threshold=0.7, max_takes=4)
    summary = run(plan, out)
    tries = []
    for scene in scenes_of(plan):
        scores = [score(take_of(scene, number)) for number in range(1, 5)]
        tries.append(max(2, next((number for number, one in enumerate(scores, 1) if one >= 0.7), 4)))
    assert set(tries) > {2}, "else this test proves nothing"
    assert (made(out), summary.takes, summary.gated) == (sum(tries), sum(tries) - 12, True)
    counts = Counter(row["take_of"] or row["asset_id"] for row in read_index(out).to_pylist() if row["kind"] == "scene")
    assert [counts[scene.asset_id] for scene in scenes_of(plan)] == tries
    assert even(summary) and run(plan, out, accept_below=True).rendered == 0


def test_what_a_review_asks_for_is_made_once_and_nothing_else(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=2, scenes=4)), tmp_path / "out"
    run(plan, out)
    before, scenes = files(out), scenes_of(plan)
    decide(out, scenes[0], "reroll", 2)
    decide(out, scenes[0], "reroll", 3)
    decide(out, scenes[5], "reroll", 2)
    decide(out, scenes[5], "reject")
    decide(out, scenes[1], "pick")
    taken_back = decide(out, scenes[2], "reroll", 2)
    undo(out, taken_back)
    wanted = {take_of(scenes[0], 2).path, take_of(scenes[0], 3).path, take_of(scenes[5], 2).path}
    told = status(plan, out)
    assert told.decisions == {"picked": 1, "rejected": 1, "re-rolled": 3}
    assert (told.rerolls, told.rerolls_todo, told.todo, told.planned) == (3, 3, 3, 15)
    assert run(plan, out, only_failed=True).rendered == 0, "a retry makes what failed, and nothing else"
    summary = run(plan, out, events := [])
    assert (summary.state, summary.rendered, summary.rerolls, summary.takes, summary.found) == ("complete", 3, 3, 3, 12)
    assert any(isinstance(event, Notice) and "3 further takes: 3 re-rolls to make" in event.message for event in events)
    after = files(out)
    assert after.keys() - before.keys() == wanted and after.items() >= before.items()
    again = run(plan, out)
    assert (again.rendered, again.found, files(out)) == (0, 15, after)
    told = status(plan, out)
    assert (told.rerolls, told.rerolls_todo, told.todo, told.done) == (3, 0, 0, 15)
    undo(out, Decision(*_names(scenes[1]), "pick", "mia", at=_at(out, "pick")))
    assert status(plan, out).decisions == {"rejected": 1, "re-rolled": 3}


def _names(scene: Asset) -> tuple[str, str, str, str]:
    return scene.asset_id, scene.asset_id, scene.subject_id, scene.scene_id


def _at(out: Path, action: str):  # type: ignore[no-untyped-def]
    return next(one.at for one in read_decisions(str(out))[0] if one.action == action)


def test_a_rejected_picture_that_is_gone_stays_away(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=4)), tmp_path / "out"
    run(plan, out)
    scene, other = scenes_of(plan)[:2]
    rejected = decide(out, scene, "reject")
    (out / scene.path).unlink()
    (out / other.path).unlink()
    summary = run(plan, out)
    assert (summary.state, summary.rendered, summary.planned) == ("complete", 1, 5) and even(summary)
    assert not (out / scene.path).exists() and (out / other.path).exists()
    told = status(plan, out)
    assert (told.planned, told.done, told.todo, told.subjects[0].planned) == (5, 5, 0, 5)
    undo(out, rejected)
    assert run(plan, out).rendered == 1 and (out / scene.path).exists()


def test_an_edited_scene_is_nobodys_decision(make_job: MakeJob, tmp_path: Path) -> None:
    job, out = make_job(subjects=1, scenes=3), tmp_path / "out"
    plan = make_plan(job)
    run(plan, out)
    for action, take in (("reject", None), ("reroll", 2)):
        decide(out, scenes_of(plan)[0], action, take)  # type: ignore[arg-type]
    subject = job.subjects[0]
    scene = Scene(prompt="somewhere else")
    edited = make_plan(
        job.model_copy(
            update={"subjects": (subject.model_copy(update={"scenes": (scene, *subject.scenes[1:])}),)},
        )
    )
    told = status(edited, out)
    assert (told.rerolls, told.decisions) == (0, {"about other pictures": 2})
    summary = run(edited, out)
    assert (summary.rendered, summary.rerolls, summary.planned) == (1, 0, 5)
    assert run(plan, out).rerolls == 1, "what the job had before is asked for again"


def test_decisions_that_cannot_be_used_are_told_and_the_run_goes_on(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=3)), tmp_path / "out"
    run(plan, out)
    decide(out, scenes_of(plan)[0], "reroll", 2)
    broken = out / DECISIONS_FOLDER / "part-00000000000000000000000000000000.parquet"
    broken.write_bytes(b"half a part")
    events: list[Event] = []
    summary = run(plan, out, events)
    assert (summary.state, summary.rerolls) == ("complete", 1)
    assert any(isinstance(event, Notice) and broken.name in event.message for event in events)
    follower = StatusFollower(open_output(str(out)), plan)
    (told,) = follower.read().decisions_unread
    assert broken.name in told and broken.exists(), "it is nobody's to delete"
    broken.with_name(broken.name.replace("0", "1")).write_bytes(b"another half")
    assert len(follower.read().decisions_unread) == 2, "told without any new decision"


def test_a_persons_word_stands_above_the_gate(make_job: MakeJob, tmp_path: Path) -> None:
    """Of scenes that fall short, those that somebody has decided about are asked for no more, and are not missed."""
    job, out = make_job(subjects=1, scenes=5), tmp_path / "out"
    run(gated(job, threshold=2.0, max_takes=1), out)
    assert made(out) == 5
    plan = gated(job, threshold=2.0, max_takes=3)
    picked, rejected, rolled, rest = scenes_of(plan)[:4]
    decide(out, picked, "pick")
    decide(out, rejected, "reject")
    decide(out, rolled, "reroll", 2)
    summary = run(plan, out)
    assert made(out) == 5 + 1 + 2 * 2 and summary.rerolls == 1
    assert summary.short == 2 and {one.path.rpartition("/")[2][:9] for one in summary.shortfalls}
    takes = Counter(row["take_of"] for row in read_index(out).to_pylist() if row["take_of"])
    assert [takes[one.asset_id] for one in (picked, rejected, rolled, rest)] == [0, 0, 1, 2]
    scored = {row["asset_id"]: row["score"] for row in read_index(out).to_pylist()}
    assert scored[take_of(rolled, 2).asset_id] == score(take_of(rolled, 2)), "a re-roll is looked at, too"
    told = status(plan, out)
    assert len(told.short) == 2 and told.gated


def test_a_median_does_not_wait_for_what_stays_away(make_job: MakeJob, tmp_path: Path) -> None:
    job, out = make_job(subjects=1, scenes=5), tmp_path / "out"
    plain = make_plan(job)
    run(plain, out)
    gone = scenes_of(plain)[0]
    decide(out, gone, "reject")
    (out / gone.path).unlink()
    plan = gated(job, within=0.0, max_takes=2)
    summary = run(plan, out)
    assert summary.rendered == 2 and summary.scored == 4, "of four scores, two are below their median"
    assert even(summary) and status(plan, out).todo == 0


def test_a_dataset_has_what_people_have_chosen(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=3).with_takes(2)), tmp_path / "out"
    run(plan, out)
    first, second, third = scenes_of(plan)
    decide(out, first, "pick", about=take_of(first, 2))
    decide(out, second, "reject")
    for one in (third, take_of(third, 2)):
        decide(out, third, "reject", about=one)
    import pyarrow.parquet as pq

    looked_at = scorable(open_output(str(out)))
    shards = write_dataset(open_output(str(out))).paths
    ids = {asset_id for path in shards for asset_id in pq.read_table(out / path)["asset_id"].to_pylist()}
    anchors = {anchor.asset_id for subject in plan.subjects for anchor in subject.anchors}
    assert ids - anchors == {take_of(first, 2).asset_id, take_of(second, 2).asset_id}
    assert set(looked_at["asset_id"].to_pylist()) == ids, "an evaluation looks at the same"


def test_takes_move_with_their_scene(tmp_path: Path) -> None:
    """A subject that gets a neighbour of the same words has another folder, a scene with an id another name."""
    out = tmp_path / "out"

    def planned(*ids: str, neighbour: bool) -> Plan:
        scenes = [{"prompt": f"at place {number}", **({"id": id} if id else {})} for number, id in enumerate(ids)]
        cat = {"concept": "cat", "subject": "a cat", "anchors": ["at home"], "scenes": scenes}
        other = {**cat, "anchors": ["at sea"], "scenes": ["in a boat"]}
        job = {"name": "x", "model": "fake", "takes": 2, "subjects": [cat, *([other] if neighbour else [])]}
        return make_plan(parse_job(job))

    plan = planned("", "", neighbour=False)
    run(plan, out)
    decide(out, scenes_of(plan)[0], "reroll", 3)
    run(plan, out)
    moved = planned("", "sea", neighbour=True)
    assert {asset.asset_id for asset in plan.assets()} < {asset.asset_id for asset in moved.assets()}
    assert run(moved, out).rendered == 1 + 2, "of the neighbour, and nothing else"
    wanted = asked_plan(moved, read_decisions(str(out))[0])
    places = {asset.path for asset in wanted.assets() if asset.kind == "scene"}
    assert places == files(out).keys() and not any(path.startswith("images/cat/") for path in places)
    rows = {row["path"]: row for row in read_index(out).to_pylist()}
    assert all(
        (rows[asset.path]["subject"], rows[asset.path]["scene"]) == (asset.subject_id, asset.scene_id)
        for asset in wanted.assets()
    )
