"""What a plan will cost: how much is left to do, how long it may take, how large its anchor caches get. Without torch.

Times are calls of the network (:mod:`consistory_ray.consistory.method.call_counts`), of which anchors and the scenes of
each profile take more or fewer, times the median seconds of a call in the pictures that the output already holds;
before there are any, a rough figure for the bundled model on two CPU cores, or for an SDXL model on one data-centre
GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from consistory_ray.consistory.method.call_counts import anchor_calls, scene_calls
from consistory_ray.plan.model_files import model_config, pixels_per_latent
from consistory_ray.settings import BUNDLED_MODEL, PROFILES, MethodSettings

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset, Plan, SubjectPlan

_MINIATURE_SECONDS_PER_CALL = 0.05  # at 128 px, two cores, float32
_SDXL_SECONDS_PER_CALL_AND_MEGAPIXEL = 0.125  # float16, one data-centre GPU
_PICTURE_BYTES_PER_PIXEL = 1.8  # of a PNG as it is written here
_MIN_SAMPLES = 3
CONTROLLED = 0.5
"""What each ControlNet that leads a picture adds to its time, as a share of it."""
KEPT_CACHE_BYTES = 100_000_000_000
"""Without a word about it, the anchor caches of a job are kept if all of them together are no larger than that."""


@dataclass(frozen=True, slots=True)
class SubjectForecast:
    """One subject: pictures planned, pictures there, bytes of its anchor cache; takes are further ones of scenes."""

    subject_id: str
    anchors: int
    scenes: int
    done: int
    todo: int
    cache_bytes: int
    takes: int = 0


@dataclass(frozen=True, slots=True)
class ProfileForecast:
    """What the whole plan would take with a profile, all else as it is.

    Attributes:
        profile: its name; None for the plan's own settings where they are no profile's.
        scene_cost: of a scene, as a multiple of a picture without the method.
        cache_bytes: of all anchor caches.
        seconds: how long all of its pictures take.
    """

    profile: str | None
    scene_cost: float
    cache_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """A plan compared with an output.

    Attributes:
        name, model, output: of what, and where.
        subjects, anchors, scenes: how many the plan has.
        done, todo: how many pictures (anchors and scenes) are there, and are not.
        cache_bytes: of all anchor caches that are still to be made or loaded.
        kept_cache_bytes: of all anchor caches that will lie at the output in the end.
        picture_bytes: of all pictures that will lie there, roughly.
        keep_anchors: what was asked for, see :class:`~consistory_ray.engine.options.RunOptions`.
        seconds: how long it may take.
        workers: the number of workers that this is for.
        measured: whether ``seconds`` comes from pictures of this output or is a rough figure.
        by_subject: the same, subject by subject.
        profile: of its subjects that are made; None where it is none of the profiles.
        profiles: what each profile would take; none where no subject is to be made.
        sampling: how pictures are sampled, in words; one for each kind among the subjects.
        loaded: what is loaded with the model, as :meth:`~consistory_ray.plan.loaded.Loaded.told` tells it.
        loading: the same in a line; empty where that is nothing.
        most_takes: how many pictures a scene may take, where the job has a gate; counts, times and bytes are those of
            takes that are made in any case.
        takes: further takes of the scenes that are made in any case.
        rerolls: how many of those people have asked for.
        rerolls_todo: how many of those are not there.
    """

    name: str
    model: str
    output: str
    subjects: int
    anchors: int
    scenes: int
    done: int
    todo: int
    cache_bytes: int
    kept_cache_bytes: int
    picture_bytes: int
    keep_anchors: str
    seconds: float
    workers: int
    measured: bool
    by_subject: tuple[SubjectForecast, ...]
    profile: str | None = None
    profiles: tuple[ProfileForecast, ...] = ()
    sampling: tuple[str, ...] = ()
    loaded: Mapping[str, Any] = field(default_factory=dict)
    loading: str = ""
    most_takes: int = 1
    takes: int = 0
    rerolls: int = 0
    rerolls_todo: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def keeps_caches(keep: str, nbytes: int) -> bool:
    """Whether anchor caches of so many bytes in all stay at the output, by what ``keep_anchors`` says."""
    return keep == "all" or (keep == "auto" and nbytes <= KEPT_CACHE_BYTES)


def usual_device(plan: Plan) -> str:
    """What a plan is rendered on where nobody says it: a GPU, unless its model is the bundled one."""
    return "cpu" if plan.model == BUNDLED_MODEL else "cuda"


def forecast(
    plan: Plan,
    output: str,
    done: Collection[str],
    seconds: Mapping[str, float],
    *,
    workers: int = 1,
    device: str = "cpu",
    keep_anchors: str = "auto",
) -> Forecast:
    """Compare a plan with what its output holds, see :func:`~consistory_ray.output.comparison.pictures_made`.

    Args:
        plan: the plan.
        output: address of its output.
        done: ids of the plan's assets that are there.
        seconds: that pictures took, by asset id.
        workers: how many will share the work.
        device: ``"cpu"`` or ``"cuda"``, which decides the precision and so the size of a cache.
        keep_anchors: which caches will stay.
    """
    sizes = expected_cache_bytes(plan, device)
    by_subject = tuple(_subject(subject, done, sizes[subject.subject_id]) for subject in plan.subjects)
    todo = sum(subject.todo for subject in by_subject)
    each = _seconds_per_call(plan, seconds)
    calls = sum(calls for asset, calls in assets_with_calls(plan) if asset.asset_id not in done)
    everything = sum(sizes.values())
    return Forecast(
        name=plan.name,
        model=plan.model,
        output=output,
        subjects=len(plan.subjects),
        anchors=plan.anchor_count,
        scenes=plan.scene_count,
        done=sum(subject.done for subject in by_subject),
        todo=todo,
        cache_bytes=sum(subject.cache_bytes for subject in by_subject if subject.todo),
        kept_cache_bytes=everything if keeps_caches(keep_anchors, everything) else 0,
        picture_bytes=sum(_picture_bytes(plan.model, subject) for subject in plan.subjects),
        keep_anchors=keep_anchors,
        seconds=round(each * calls / max(1, workers), 1),
        workers=workers,
        measured=len(seconds) >= _MIN_SAMPLES,
        by_subject=by_subject,
        profile=_profile(plan),
        profiles=_by_profile(plan, each / max(1, workers), device),
        sampling=tuple(dict.fromkeys(sampled(subject.settings) for subject in plan.subjects)),
        loaded=plan.loaded.told(),
        loading=plan.loaded.words(),
        most_takes=1 if plan.quality is None else plan.quality.max_takes,
        takes=plan.take_count,
        rerolls=len(plan.decided.rerolls),
        rerolls_todo=len(plan.decided.rerolls.difference(done)),
    )


def sampled(settings: MethodSettings) -> str:
    """How pictures are sampled, in words."""
    spaced = (settings.sigma_schedule, settings.timestep_spacing)
    steps = f"{settings.num_inference_steps} steps"
    if settings.timesteps is not None:
        steps = f"at {', '.join(map(str, settings.timesteps))}"
    eta = f"eta {settings.eta:g}" if settings.eta else ""
    return ", ".join(part for part in (settings.scheduler, *spaced, steps, eta) if part)


def expected_cache_bytes(plan: Plan, device: str) -> dict[str, int]:
    """Bytes of every subject's anchor cache, by subject id."""
    dtype = plan.torch_dtype if plan.torch_dtype != "auto" else "float16" if device == "cuda" else "float32"
    from consistory_ray.consistory.models.sdxl_layout import SDXL_UNET_CONFIG

    config, scale = model_config(plan.model, "unet") or SDXL_UNET_CONFIG, pixels_per_latent(plan.model)
    made = [subject for subject in plan.subjects if not subject.sources]
    kinds = {(subject.settings, len(subject.anchors), bool(subject.pictures)) for subject in made}
    sizes = {kind: _cache_bytes(config, scale, *kind, dtype) for kind in kinds}
    return {
        subject.subject_id: sum(source.nbytes for source in subject.sources)
        if subject.sources
        else sizes[subject.settings, len(subject.anchors), bool(subject.pictures)]
        for subject in plan.subjects
    }


def _subject(subject: SubjectPlan, done: Collection[str], cache_bytes: int) -> SubjectForecast:
    assets = [*subject.anchors, *subject.renders]
    there = sum(asset.asset_id in done for asset in assets)
    counts = len(subject.anchors), len(subject.scenes), there, len(assets) - there
    return SubjectForecast(subject.subject_id, *counts, cache_bytes, len(subject.takes))


def megapixels(model: str, settings: MethodSettings) -> float:
    """Millions of pixels of a picture."""
    side = 128 if model == BUNDLED_MODEL else 1024
    return (settings.height or side) * (settings.width or side) / 1e6


def mean_controls(plan: Plan) -> float:
    """How many ControlNets lead a picture, on average."""
    if not plan.controlnets:
        return 0.0
    return statistics.fmean(len({control.net for control in asset.control}) for asset in plan.assets())


def _picture_bytes(model: str, subject: SubjectPlan) -> int:
    pixels = megapixels(model, subject.settings) * 1e6
    return round((len(subject.anchors) + len(subject.renders)) * pixels * _PICTURE_BYTES_PER_PIXEL)


def _seconds_per_call(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Of what was measured where that is enough, else a rough figure."""
    if len(seconds) >= _MIN_SAMPLES:
        taken = ((asset, calls) for asset, calls in assets_with_calls(plan) if asset.asset_id in seconds)
        if samples := [seconds[asset.asset_id] / calls for asset, calls in taken]:
            return statistics.median(samples)
    guess = max((rough_seconds(plan.model, subject.settings) for subject in plan.subjects), default=0.0)
    return guess * (1 + CONTROLLED * mean_controls(plan))


def assets_with_calls(plan: Plan) -> Iterator[tuple[Asset, float]]:
    """Every picture of a plan, and how many calls of the network it takes."""
    for subject in plan.subjects:
        anchor, scene = anchor_calls(subject.settings), scene_calls(subject.settings)
        yield from ((asset, anchor) for asset in subject.anchors)
        yield from ((asset, scene) for asset in subject.renders)


def _all_calls(subjects: Iterable[SubjectPlan]) -> float:
    return sum(
        len(subject.anchors) * anchor_calls(subject.settings) + len(subject.renders) * scene_calls(subject.settings)
        for subject in subjects
    )


def _profile(plan: Plan) -> str | None:
    made = {subject.settings for subject in plan.subjects if not subject.sources}
    return made.pop().profile if len(made) == 1 else None


def _by_profile(plan: Plan, seconds_per_call: float, device: str) -> tuple[ProfileForecast, ...]:
    """Of all subjects that are made, with each profile, and as they are where that is none of them."""
    made = [subject for subject in plan.subjects if not subject.sources]
    if not made:
        return ()
    choices: list[str | None] = [*PROFILES, *([None] if _profile(plan) is None else [])]
    found = []
    for name in choices:
        subjects = tuple(
            subject if name is None else replace(subject, settings=subject.settings.with_profile(name))
            for subject in made
        )
        with_it = replace(plan, subjects=subjects)
        found.append(
            ProfileForecast(
                name,
                round(statistics.fmean(_scene_cost(subject.settings) for subject in subjects), 2),
                sum(expected_cache_bytes(with_it, device).values()),
                round(seconds_per_call * _all_calls(subjects), 1),
            )
        )
    return tuple(found)


def _scene_cost(settings: MethodSettings) -> float:
    return scene_calls(settings) / settings.num_inference_steps


def rough_seconds(model: str, settings: MethodSettings) -> float:
    """Of a call, where nothing was measured."""
    if model == BUNDLED_MODEL:
        return _MINIATURE_SECONDS_PER_CALL
    return _SDXL_SECONDS_PER_CALL_AND_MEGAPIXEL * megapixels(model, settings)


def _cache_bytes(
    config: Mapping[str, Any], scale: int, settings: MethodSettings, anchors: int, given: bool, dtype: str
) -> int:
    from consistory_ray.consistory.cache.estimates import estimate_cache_bytes

    return estimate_cache_bytes(config, settings, anchors, dtype=dtype, vae_scale_factor=scale, given=given)
