"""What leads a plan's pictures: hints by their content, ControlNets by their weights. Pure: no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consistory_ray.plan.inputs import PlannedFile, planned
from consistory_ray.settings import controlnet_revision

if TYPE_CHECKING:
    from consistory_ray.jobs.controls import Control, Pose
    from consistory_ray.jobs.job import RenderJob


@dataclass(frozen=True, slots=True)
class PlannedControl:
    """A hint for one picture.

    Attributes:
        file: the hint.
        scale, start, end, preprocess, mode: see :class:`~consistory_ray.jobs.controls.Control`.
        net: which of the plan's ControlNets, by its place.
        net_revision: which weights these are at present, by their content; of a hub id the id.
        guess_mode: see :class:`~consistory_ray.jobs.job.RenderJob`.
    """

    file: PlannedFile
    scale: float
    start: float
    end: float
    preprocess: str
    net: int
    net_revision: str
    mode: int | str | None = None
    guess_mode: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields: all that decides what it does, and nothing of where its files lie."""
        fields: dict[str, Any] = {
            "sha256": self.file.sha256,
            "scale": self.scale,
            "start": self.start,
            "end": self.end,
            "preprocess": self.preprocess,
            "net": self.net_revision,
        }
        if self.mode is not None:
            fields["mode"] = self.mode
        return {**fields, "guess_mode": True} if self.guess_mode else fields


class ControlPlanner:
    """Plans the hints of a job; equal ones become one value.

    Args:
        job: names the ControlNets.
    """

    def __init__(self, job: RenderJob) -> None:
        self._names = [net.called for net in job.controlnets]
        self._revisions = [controlnet_revision(net.model) or net.model for net in job.controlnets]
        self._guess_mode = job.guess_mode
        self._planned: dict[tuple[Control, ...], tuple[PlannedControl, ...]] = {(): ()}

    def __call__(self, controls: tuple[Control, ...]) -> tuple[PlannedControl, ...]:
        """What leads a picture."""
        if controls not in self._planned:
            self._planned[controls] = tuple(self._plan(control) for control in controls)
        return self._planned[controls]

    def _plan(self, control: Control) -> PlannedControl:
        net = self._names.index(control.net) if isinstance(control.net, str) else control.net
        return PlannedControl(
            planned(control.image),
            control.scale,
            control.start,
            control.end,
            control.preprocess,
            net,
            self._revisions[net],
            control.mode,
            self._guess_mode,
        )


def identity(controls: Iterable[PlannedControl]) -> list[dict[str, Any]]:
    """What leads a picture, as it enters ids."""
    return [control.to_dict() for control in controls]


def in_poses(
    names: Sequence[str], control: tuple[Control, ...], poses: Sequence[Pose]
) -> list[tuple[str, int, tuple[Control, ...]]]:
    """A scene's pictures: each of its own in every pose.

    Args:
        names: of its pictures without poses.
        control: its own.
        poses: of its subject.

    Returns:
        For each picture its name, which of ``names`` it is one of, and what leads it.
    """
    if not poses:
        return [(name, number, control) for number, name in enumerate(names)]
    return [
        (f"{name}.{_pose_name(pose)}", number, (*control, pose)) for number, name in enumerate(names) for pose in poses
    ]


def _pose_name(pose: Pose) -> str:
    return pose.name or f"pose-{pose.image.sha256[:8]}"
