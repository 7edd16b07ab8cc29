"""One individual of a job: what fixes its appearance, and the scenes it is rendered in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from consistory_ray.guards.setting_ranges import Switch, Whole
from consistory_ray.jobs.checks import join_prompt, scene_head, subject_findings
from consistory_ray.jobs.controls import MAX_POSES, Controls, Pose, PoseFolder, listed
from consistory_ray.jobs.given_pictures import Fit
from consistory_ray.jobs.input_files import File
from consistory_ray.jobs.joined_subjects import MOST_JOINED
from consistory_ray.jobs.matrix import expanded, places_of
from consistory_ray.jobs.render_settings import FROZEN, STRICT, Seed, TextOrNothing
from consistory_ray.jobs.stored_caches import StoredCache, as_sources, as_written
from consistory_ray.jobs.validation import Id, Text, bounded_entry, bounded_picture, checked, invalid, relocated

MAX_COUNT = 100_000
MAX_ANCHORS = 64
MAX_GIVEN = 8
MAX_CONCEPTS = 16
MatrixSource = dict[str, list[str] | dict[str, str | None] | str | list[dict[str, str | list[str]]]]
OnMissingConcept = Literal["fail", "skip"]
Expand = Literal["draw", "all"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, config=STRICT)
class Anchor:
    """A picture that defines the subject: scenes share its appearance."""

    prompt: Text
    """The anchor's scene, in words; style and subject come before it."""
    seed: Seed | None = None
    """Seed of its initial latents; left out, it is derived from the job's seed, the subject's id or text and the
    prompt."""
    control: Controls = ()
    """What leads its layout: a hint for one of the job's controlnets, or several."""
    prompt_2: Text | None = None
    """What the second text encoder reads instead of the prompt; style and subject come before it, too."""
    negative_prompt: TextOrNothing | None = None
    """What it should not show, in place of the settings' negative_prompt; "" is the embedding of the empty text."""


@dataclass(frozen=True, slots=True, config=STRICT)
class GivenPicture:
    """A picture of the subject that is given: it takes the place of an anchor, and scenes share its appearance."""

    image: File
    """Path or URL of a PNG, JPEG or WebP file; a relative path is relative to the job file. What is transparent in it
    is not the subject."""
    prompt: TextOrNothing = ""
    """Where the subject is in it, in words; style and subject come before it."""
    mask: File | None = None
    """Path or URL of a picture of the same size, in which the subject is white and all else black. Left out, the
    subject is found."""
    fit: Fit = "crop"
    """How a picture of another shape becomes one of the job's: "crop" keeps the largest part of it that has this shape,
    "letterbox" keeps all of it, with a margin."""
    seed: Seed | None = None
    """Seed of the noise that is added to it; left out, it is derived like that of an anchor."""
    control: Controls = ()
    """What leads the network while it looks at the picture: a hint of the same layout, or several."""


@dataclass(frozen=True, slots=True, config=STRICT)
class Scene:
    """A further picture of the subject, or ``count`` of them with different seeds."""

    prompt: Text
    """The scene, in words; style and subject come before it."""
    id: Id | None = None
    """File name of the picture: up to 80 ASCII letters, digits, ".", "_" and "-". Left out, it is made of the
    prompt."""
    seed: Seed | None = None
    """Seed of the (first) picture; left out, it is derived from the job's seed, the subject's id or text and the
    prompt."""
    count: Annotated[Whole, Field(ge=1, le=MAX_COUNT)] = 1
    """How many pictures; with more than one they are called id-0, id-1, … and their seeds count up."""
    control: Controls = ()
    """What leads its layout: a hint for one of the job's controlnets, or several."""
    prompt_2: Text | None = None
    """What the second text encoder reads instead of the prompt; style, subject and details come before it, too."""
    negative_prompt: TextOrNothing | None = None
    """What it should not show, in place of the settings' negative_prompt; "" is the embedding of the empty text."""
    expand: Expand = "draw"
    """What becomes of a dynamic prompt: each of the ``count`` pictures draws words of its own, or "all": there are
    ``count`` pictures for every text that the prompt can become."""


class Subject(BaseModel):
    """One individual: the same in all of its anchors and scenes. A prompt is style + subject + scene."""

    model_config = ConfigDict(
        serialize_by_alias=True,
        json_schema_extra={
            "required": [],
            "allOf": [
                {"anyOf": [{"required": ["scenes"]}, {"required": ["matrix"]}]},
                {
                    "anyOf": [
                        {"required": ["from"]},
                        {"required": ["concept", "anchors"]},
                        {"required": ["concept", "pictures"]},
                    ]
                },
            ],
        },
        **FROZEN,
    )

    sources: Annotated[
        tuple[StoredCache, ...],
        Field(max_length=MOST_JOINED),
        BeforeValidator(as_sources, json_schema_input_type=str | list[str] | StoredCache | list[StoredCache] | None),
        PlainSerializer(as_written),
    ] = Field(default=(), alias="from")
    """Folder or URL of a subject that an earlier run has stored, such as s3://bucket/run/anchors/moss-dragon. It brings
    concept, anchors, settings and, unless given, style, subject and id. A list of 2 to 8 of them lets subjects of
    different runs meet in the same pictures."""

    id: Id | None = None
    """Folder name of the subject's pictures: up to 80 ASCII letters, digits, ".", "_" and "-". Left out, it is made of
    the subject's text, with a short hash of all its words where another subject would have the same one."""
    concept: Annotated[
        tuple[Text, ...],
        Len(1, MAX_CONCEPTS),
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    ]
    """The word or words that name the subject; a list for several subjects. In the prompts they are best written alike;
    they may stand apart, in another order or in plural, which validate and plan tell."""
    style: TextOrNothing = ""
    """First part of every prompt, for example "a drawing of"."""
    subject: TextOrNothing = ""
    """Second part of every prompt, for example "a dragon"."""
    details: TextOrNothing = ""
    """What is to be seen of the subject in its scenes, for example "with purple glasses": it comes between subject and
    scene, and not into the captions of anchors and pictures. If it names every concept, as "a spotted ghost with a hat"
    does, it takes the place of the subject's text."""
    anchors: Annotated[
        tuple[Annotated[Anchor, WrapValidator(bounded_entry, json_schema_input_type=str | Anchor)], ...],
        Field(min_length=1, max_length=MAX_ANCHORS),
    ] = ()
    """One or more (two are usual) pictures that fix the subject's appearance."""
    pictures: Annotated[
        tuple[Annotated[GivenPicture, WrapValidator(bounded_picture, json_schema_input_type=str | GivenPicture)], ...],
        Field(min_length=1, max_length=MAX_GIVEN),
    ] = ()
    """Instead of anchors: one to eight pictures that there are of the subject. An entry may be a bare address."""
    scenes: Annotated[
        tuple[Annotated[Scene, WrapValidator(bounded_entry, json_schema_input_type=str | Scene)], ...],
        Field(min_length=1),
    ] = ()
    """The pictures to render. Needed unless there is a matrix."""
    matrix: Annotated[MatrixSource | None, Field(exclude=True, repr=False)] = None
    """More scenes, one for each combination of values: a mapping of axes, each a list of texts or a mapping of ids to
    texts, such as {pose: [sitting, running], place: {forest: in the forest, beach: on the beach}}. template, such as
    "{pose} {place}", says how their words join, and exclude lists combinations to leave out. What is made of it stands
    among the scenes, as if it had been written there."""
    poses: Annotated[
        tuple[Pose, ...],
        Field(max_length=MAX_POSES),
        BeforeValidator(listed, json_schema_input_type=str | PoseFolder | list[str | Pose]),
    ] = ()
    """Hints that every scene is rendered with, each in turn: so many pictures as scenes times poses, called like
    in-the-snow.sitting. A folder (path or URL) of pictures, a list of pictures, or a mapping with folder or images and
    what all of them have, such as {folder: poses, scale: 0.8}."""
    on_missing_concept: OnMissingConcept = "fail"
    """What becomes of the job if nothing of a concept stands in a prompt: it is refused, or those pictures fail."""
    dynamic_prompts: Switch | None = None
    """Whether ``{a|b}`` and ``__names__`` are drawn in its prompts; left out, what the job says. Style, subject and
    details are drawn once for all of its pictures."""

    @property
    def shown_by(self) -> tuple[Anchor | GivenPicture, ...]:
        """What fixes its appearance: its pictures, or its anchors."""
        return self.pictures or self.anchors

    def caption(self, text: str) -> str:
        """The whole prompt of an anchor, or what a picture shows."""
        return join_prompt(self.style, self.subject, text)

    def prompt(self, scene: str) -> str:
        """The whole prompt of a scene."""
        return join_prompt(scene_head(self.style, self.subject, self.details, self.concept), scene, "")

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, data: Any, handler: Callable[[Any], Self], info: ValidationInfo) -> Self:
        written, wrong = expanded(data)
        if wrong:
            raise invalid(cls, wrong)
        try:
            subject: Self = checked(cls, written, handler, subject_findings, info)
        except ValidationError as error:
            if written is data:
                raise
            raise relocated(cls, error, places_of(data)) from None
        return subject
