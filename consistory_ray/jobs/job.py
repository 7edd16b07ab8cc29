"""What a user writes: a job of subjects (:mod:`consistory_ray.jobs.subject`) and how to render them.

A job is a frozen value. Constructing one in Python raises pydantic's ``ValidationError``; reading one from a file with
:func:`load_job` raises :class:`~consistory_ray.errors.JobError` with every problem of the file, in plain words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from typing_extensions import Self

from consistory_ray.errors import JobError, Problem
from consistory_ray.guards.choices import Profile
from consistory_ray.guards.named_code import is_named_code
from consistory_ray.guards.problems import FIXES, explain, fault, path, shown
from consistory_ray.guards.setting_ranges import Switch
from consistory_ray.jobs.adapter_files import look_up_adapters
from consistory_ray.jobs.adapter_findings import loading_findings
from consistory_ray.jobs.adapters import MAX_EMBEDDINGS, MAX_LORAS, Embedding, LoRA, Vae, with_path
from consistory_ray.jobs.adapters import listed as adapters_listed
from consistory_ray.jobs.checks import control_findings, job_findings, oversized
from consistory_ray.jobs.control_files import look_up_controls
from consistory_ray.jobs.controls import MAX_CONTROLNETS, Control, ControlNet, Pose, listed, named
from consistory_ray.jobs.dynamic_checks import dynamic_findings
from consistory_ray.jobs.given_pictures import look_up_pictures
from consistory_ray.jobs.input_files import InputFiles
from consistory_ray.jobs.matrix import locating
from consistory_ray.jobs.model_names import model_name
from consistory_ray.jobs.quality import MAX_TAKES, Quality, Takes, quality_findings, takes_findings
from consistory_ray.jobs.readers import Document, read_document
from consistory_ray.jobs.render_settings import FROZEN, RenderSettings
from consistory_ray.jobs.stored_subjects import resolve_stored
from consistory_ray.jobs.subject import Anchor, GivenPicture, OnMissingConcept, Scene, Subject
from consistory_ray.jobs.validation import Budget, Text, bounded_subject, checked, handed_down
from consistory_ray.jobs.wildcards import look_up_wildcards
from consistory_ray.settings import BUNDLED_MODEL

MAX_CHECKS = 16


def _code(value: str) -> str:
    if not is_named_code(value):
        raise fault("write package.module:function, such as house.rules:no_text")
    return value


CheckName = Annotated[Text, Field(max_length=300), AfterValidator(_code)]
"""A function by its name."""


def _model(value: str) -> str:
    name, fix = model_name(value)
    if fix:
        raise fault(fix)
    return name


def _as_lists(value: Any) -> Any:
    """Addresses of folders were looked up before (:mod:`consistory_ray.jobs.wildcards`)."""
    if isinstance(value, str):
        raise fault("load_job and parse_job look addresses up: give the whole job to one of them, or the lists")
    return {} if value is None else value


_FINDINGS = (job_findings, control_findings, dynamic_findings, loading_findings, quality_findings, takes_findings)


class RenderJob(BaseModel):
    """Everything a run needs to know about what to render."""

    model_config = ConfigDict(json_schema_extra={"required": ["subjects"]}, **FROZEN)

    name: Annotated[Text, Field(max_length=200)]
    """What the run is called in reports; left out in a file, it is the file's name."""
    model: Annotated[Text, Field(max_length=1000), AfterValidator(_model)] = BUNDLED_MODEL
    """"miniature" (bundled), a Hugging Face id, a folder or a .safetensors file, of the SDXL architecture."""
    config: Annotated[Text, Field(max_length=1000)] | None = None
    """For a .safetensors file: a folder (or Hugging Face id) in diffusers' layout with the configurations and the
    tokenizers that such a file lacks. Left out, they are looked up on the hub, which needs a network."""
    variant: Annotated[Text, Field(max_length=40)] | None = None
    """Which of the files of a folder or a Hugging Face id: "fp16" takes model.fp16.safetensors where there is one, half
    the size. Left out, it is "fp16" where torch_dtype is float16 and the hub has them."""
    revision: Annotated[Text, Field(max_length=100)] | None = None
    """Of a Hugging Face id the branch, tag or commit; left out, it is the newest."""
    vae: Vae | None = None
    """Another VAE than the model's own: a Hugging Face id, a folder or a .safetensors file. A relative path is relative
    to the job file."""
    loras: Annotated[
        tuple[Annotated[LoRA, BeforeValidator(with_path, json_schema_input_type=str | LoRA)], ...],
        Field(max_length=MAX_LORAS),
        BeforeValidator(adapters_listed, json_schema_input_type=str | LoRA | list[str | LoRA]),
    ] = ()
    """LoRAs that are fused into the model, one after the other."""
    embeddings: Annotated[
        tuple[Annotated[Embedding, BeforeValidator(with_path, json_schema_input_type=str | Embedding)], ...],
        Field(max_length=MAX_EMBEDDINGS),
        BeforeValidator(adapters_listed, json_schema_input_type=str | Embedding | list[str | Embedding]),
    ] = ()
    """Textual inversions, which prompts name by their tokens."""
    settings: RenderSettings = RenderSettings()
    """How to render."""
    controlnets: Annotated[
        tuple[Annotated[ControlNet, BeforeValidator(named, json_schema_input_type=str | ControlNet)], ...],
        Field(max_length=MAX_CONTROLNETS),
        BeforeValidator(listed, json_schema_input_type=str | ControlNet | list[str | ControlNet]),
    ] = ()
    """ControlNets that lead pictures by hints; control and poses say which pictures, by what."""
    guess_mode: Switch = False
    """Whether hints lead the conditional half of the guidance only, so that they count more than the words."""
    checks: Annotated[tuple[CheckName, ...], Field(max_length=MAX_CHECKS)] = ()
    """Functions that look at every picture before it is kept, ``package.module:function``: they take a picture and
    return a reason to reject it, or null. Only code is called that CONSISTORY_ALLOWED_CODE allows."""
    quality: Quality | None = None
    """What is demanded of scenes; left out, nobody looks at them. It changes no picture: first takes are what they are
    without it."""
    takes: Takes = 1
    """How many takes of each scene are made, to choose from: the same words with other seeds. The first one is the
    picture that there is without it; a quality may ask for more."""
    on_missing_concept: OnMissingConcept = "fail"
    """That of all subjects that have none of their own."""
    dynamic_prompts: Switch = False
    """Whether prompts are dynamic: one of ``{red|green}`` is drawn for each picture, and a line of a list for
    ``__animals__``. Left out, braces are text."""
    wildcards: Annotated[
        dict[Text, tuple[Text, ...]],
        BeforeValidator(_as_lists, json_schema_input_type=str | dict[str, list[str]] | None),
    ] = {}
    """Folder or URL of the lists that are drawn from, where ``__animals/birds__`` is animals/birds.txt; left out, the
    folder wildcards beside the job file. Or the lists themselves: ``{animals: [cat, dog]}``."""
    subjects: Annotated[tuple[Annotated[Subject, WrapValidator(bounded_subject)], ...], Field(min_length=1)]
    """Who to render, and where."""

    def with_profile(self, profile: Profile) -> Self:
        """The job with that profile in the place of its own; its single settings stay on top of it."""
        return self.model_copy(update={"settings": self.settings.model_copy(update={"profile": profile})})

    def with_takes(self, takes: int) -> Self:
        """The job with that many takes of each scene in the place of its own number.

        Raises:
            JobError: there cannot be so many.
        """
        job = self.model_copy(update={"takes": takes})
        problems = [] if 1 <= takes <= MAX_TAKES else [Problem("--takes", str(takes), FIXES["takes"])]
        found = chain(takes_findings(job), job_findings(job)) if not problems else ()
        problems += [Problem(path(one.loc), shown(one.value), one.fix) for one in found]
        if problems:
            raise JobError(f"{self.name} cannot be rendered with {takes} takes of each scene", problems)
        return job

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, data: Any, handler: Callable[[Any], Self], info: ValidationInfo) -> Self:
        job: Self = checked(
            cls,
            handed_down(data),
            handler,
            lambda one: chain.from_iterable(find(one) for find in _FINDINGS),
            info,
        )
        return job


def load_job(source: str | os.PathLike[str]) -> RenderJob:
    """Reads a job from a file or any fsspec URL.

    Understands this package's layout in YAML or JSON, the ConsiStory+ benchmark layout, and a CSV or Parquet table of
    prompts; :mod:`consistory_ray.jobs.readers` describes them.

    Args:
        source: a path or URL ending in ``.yaml``, ``.yml``, ``.json``, ``.csv`` or ``.parquet``.

    Raises:
        JobError: the file cannot be read or used; ``problems`` lists everything wrong with it.
    """
    return parse_document(read_document(os.fspath(source)))


def parse_job(data: Mapping[str, Any]) -> RenderJob:
    """Builds a job from plain data, as a YAML or JSON file would hold it.

    Raises:
        JobError: with every problem of the data.
    """
    return parse_document(Document("the job", data))


def parse_document(document: Document) -> RenderJob:
    """Builds a job from a document that was read; see :func:`load_job`."""
    problems = list(document.problems)
    if too_much := oversized(document.data):
        problems += [Problem(document.locate(loc), found.value, found.fix) for loc, found in too_much]
        raise _cannot_be_rendered(document, problems)
    data, files = resolve_stored(document.source, document.data), InputFiles(document.source)
    data, unreadable = look_up_pictures(document, data, files)
    problems += unreadable
    data, unreadable = look_up_controls(data, files)
    problems += unreadable
    data, unreadable = look_up_wildcards(data, files)
    problems += unreadable
    data, unreadable = look_up_adapters(data, files)
    problems += unreadable
    if isinstance(data, Mapping) and "name" not in data:
        data = {"name": PurePosixPath(document.source).stem or "job", **data}
    job = None
    if data is not None or not problems:
        try:
            job = RenderJob.model_validate(data, context=Budget())
        except ValidationError as error:
            told = {problem.path for problem in problems}
            found = explain(error, data, locating(data, document.locate), _known_keys)
            problems += [problem for problem in found if problem.path not in told]
    if problems or job is None:
        raise _cannot_be_rendered(document, problems)
    return job


def _cannot_be_rendered(document: Document, problems: list[Problem]) -> JobError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return JobError(f"{document.source} cannot be rendered: {count}", problems)


def _known_keys(loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the mapping at a place in a job."""
    names = [part for part in loc if isinstance(part, str)]
    kinds: dict[tuple[str, ...], Any] = {
        ("settings",): RenderSettings,
        ("subjects",): Subject,
        ("subjects", "anchors"): Anchor,
        ("subjects", "pictures"): GivenPicture,
        ("subjects", "scenes"): Scene,
        ("subjects", "anchors", "control"): Control,
        ("subjects", "pictures", "control"): Control,
        ("subjects", "scenes", "control"): Control,
        ("subjects", "poses"): Pose,
        ("controlnets",): ControlNet,
        ("loras",): LoRA,
        ("embeddings",): Embedding,
        ("quality",): Quality,
    }
    kind = kinds.get(tuple(names), RenderJob)
    if not issubclass(kind, BaseModel):
        return list(kind.__dataclass_fields__)
    return [field.alias or name for name, field in kind.model_fields.items()]
