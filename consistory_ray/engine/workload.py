"""What a run has to make: the plan, less what the output holds of it; and, at its end, what is missing all the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consistory_ray.engine.events import SubjectProgress
from consistory_ray.engine.scheduling.state import SubjectWork
from consistory_ray.output.comparison import lacking
from consistory_ray.output.storage import OutputStore

if TYPE_CHECKING:
    from consistory_ray.engine.options import KeepAnchors
    from consistory_ray.engine.takes import TakeKeeper
    from consistory_ray.plan.plan import Asset, Plan, SubjectPlan


@dataclass(frozen=True, slots=True)
class Workload:
    """A plan, compared with an output.

    Attributes:
        expected_first: for each picture that has to be there in the end its path, by asset id; without further takes.
        done: ids of the assets that are not to be made, whether they are there or not wanted.
        found: how many of the expected ones are there.
        takes: the further takes among the expected ones, which may become more.
    """

    expected_first: Mapping[str, str]
    done: frozenset[str]
    found: int
    takes: TakeKeeper | None = None

    @property
    def expected(self) -> Mapping[str, str]:
        """For each picture that has to be there in the end its path, by asset id."""
        further = self.takes.expected if self.takes is not None else {}
        return {**self.expected_first, **further} if further else self.expected_first

    @property
    def planned(self) -> int:
        """How many pictures have to be there in the end."""
        return len(self.expected_first) + (len(self.takes.expected) if self.takes is not None else 0)

    def progress(self, plan: Plan) -> tuple[SubjectProgress, ...]:
        """How far the plan's subjects are; further takes that are known by now count as planned."""
        further: dict[str, list[str]] = {}
        if self.takes is not None:
            for path, asset_id in ((path, asset_id) for asset_id, path in self.takes.expected.items()):
                further.setdefault(path.split("/")[1], []).append(asset_id)
        found = []
        for subject in plan.subjects:
            its = [*(asset.asset_id for asset in subject.assets()), *further.get(subject.subject_id, ())]
            done = sum(asset_id in self.done for asset_id in its)
            found.append(SubjectProgress(subject.subject_id, len(its), done))
        return tuple(found)

    @classmethod
    def of(
        cls,
        plan: Plan,
        there: Collection[str],
        failed: Collection[str],
        *,
        only_failed: bool,
        keep: KeepAnchors,
        takes: TakeKeeper | None = None,
    ) -> Workload:
        """Compare.

        Args:
            plan: what is to be rendered.
            there: ids of the assets that the output holds.
            failed: ids of those that failed before.
            only_failed: whether nothing but those is to be made.
            keep: what stays of anchors; those that nobody needs any more are not made.
            takes: those of the plan's gate, which has begun.
        """
        paths = {asset.asset_id: asset.path for asset in plan.assets()}
        done = without_broken_sets(plan, there)
        if keep == "none":
            done |= anchors_of_finished(plan, done)
        unscored = takes.unscored if takes is not None else frozenset()
        done -= unscored
        if takes is not None:
            done = frozenset(asset_id for asset_id in done if asset_id in paths or asset_id in takes.expected)
        if not only_failed:
            return cls(paths, done, len(done), takes)
        chosen = failed_with_anchors(plan, failed, done) | (unscored & paths.keys())
        expected = {asset_id: paths[asset_id] for asset_id in chosen | (done & paths.keys())}
        further = set() if takes is None else {take.asset_id for take in takes.to_make()}
        work = cls(expected, (frozenset(paths) - chosen) | (done - further), 0, takes)
        return replace(work, found=work.planned - len(chosen) - len(further))


def without_broken_sets(plan: Plan, done: Collection[str]) -> frozenset[str]:
    """``done`` without the anchors of subjects that lack one of theirs: anchors are made together or not at all."""
    broken: set[str] = set()
    for subject in plan.subjects:
        anchors = {asset.asset_id for asset in subject.anchors}
        if not anchors.issubset(done):
            broken |= anchors
    return frozenset(done) - broken


def subject_works(
    plan: Plan, done: Collection[str], cache_bytes: Mapping[str, int], takes: Iterable[Asset] = ()
) -> list[SubjectWork]:
    """What is left of a plan, subject by subject; those whose anchors are there come first.

    ``done`` holds all of a subject's anchors or none, see :func:`without_broken_sets`; ``takes`` come on top.
    """
    works = []
    further: dict[str, list[str]] = {}
    for take in takes:
        further.setdefault(take.subject_id, []).append(take.asset_id)
    for subject in plan.subjects:
        scenes = tuple(asset.asset_id for asset in subject.renders if asset.asset_id not in done)
        scenes += tuple(further.get(subject.subject_id, ()))
        anchors = tuple(asset.asset_id for asset in subject.anchors)
        to_make = () if not anchors or anchors[0] in done else anchors
        if scenes or to_make:
            size = (subject.settings.height, subject.settings.width)
            works.append(SubjectWork(subject.subject_id, to_make, scenes, cache_bytes[subject.subject_id], size))
    return sorted(works, key=lambda work: bool(work.anchors))


def failed_with_anchors(plan: Plan, failed: Collection[str], done: Collection[str]) -> set[str]:
    """The assets that failed before, and the anchors that have to be made for them; other missing ones stay missing."""
    chosen: set[str] = set()
    for subject in plan.subjects:
        anchors = {asset.asset_id for asset in subject.anchors}
        scenes = {asset.asset_id for asset in subject.renders if asset.asset_id in failed}
        if scenes or not anchors.isdisjoint(failed):
            chosen |= scenes | {asset_id for asset_id in anchors if asset_id not in done}
    return chosen


def finished_subjects(plan: Plan, done: Collection[str]) -> list[SubjectPlan]:
    """The subjects of which every scene is there, in all of its takes."""
    there = frozenset(done)
    return [subject for subject in plan.subjects if all(asset.asset_id in there for asset in subject.renders)]


def anchors_of_finished(plan: Plan, done: Collection[str]) -> frozenset[str]:
    """The anchors that nobody needs any more, whether they are there or not."""
    return frozenset(anchor.asset_id for subject in finished_subjects(plan, done) for anchor in subject.anchors)


def missing_pictures(
    store: OutputStore, plan: Plan, expected: Mapping[str, str], given_up: Collection[str], keep: KeepAnchors
) -> dict[str, str]:
    """Pictures of a run that is over which are neither there, by index and listing, nor known to have failed.

    Args:
        store: the output.
        plan: what was to be rendered.
        expected: for each asset id that has to be there by now its path.
        given_up: ids of the assets that the run has given up, each with a row that says so.
        keep: what stays of anchors; those that nobody needs any more are not missed.

    Raises:
        CorruptIndexError, InputError, StorageError: the index cannot be read.
    """
    found = lacking(store, expected)
    missing = found.missing(given_up)
    if missing and keep == "none":
        spared = anchors_of_finished(plan, expected.keys() - found.paths.keys())
        missing = {asset_id: path for asset_id, path in missing.items() if asset_id not in spared}
    return missing
