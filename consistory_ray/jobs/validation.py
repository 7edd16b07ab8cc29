"""How pydantic's checks and ours run together, and how endless errors are told in bounded time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, Strict, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticOmit

from consistory_ray.guards.problems import MAX_PROBLEMS, Loc, fault
from consistory_ray.jobs.checks import MISSING, Finding, check_text
from consistory_ray.jobs.ids import id_problem


def _text(value: str) -> str:
    cleaned, fix = check_text(value)
    if fix:
        raise fault(fix)
    return cleaned


def _id(value: str) -> str:
    fix = id_problem(value)
    if fix:
        raise fault(fix)
    return value


Text = Annotated[str, Strict(), AfterValidator(_text)]
"""Text that can be used, in its normal form."""
Id = Annotated[str, Strict(), AfterValidator(_id)]
"""Text that can be a file's name everywhere."""


class Budget:
    """How many errors of a document are still collected; given to pydantic as the context of a validation.

    Attributes:
        findings: errors of anchors and scenes.
        subjects: subjects with errors.
    """

    def __init__(self) -> None:
        self.findings = MAX_PROBLEMS
        self.subjects = MAX_PROBLEMS


def bounded_entry(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo, key: str = "prompt") -> Any:
    """Validates an anchor or scene, which may be the bare string of its prompt; passed over once enough are wrong."""
    if isinstance(info.context, Budget) and info.context.findings <= 0:
        raise PydanticOmit  # enough is wrong already: the rest is not looked at
    try:
        return handler({key: value} if isinstance(value, str) else value)
    except ValidationError as error:
        if isinstance(info.context, Budget):
            info.context.findings -= error.error_count()
        raise


def bounded_picture(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """The same for a given picture, which may be the bare string of its address."""
    return bounded_entry(value, handler, info, "image")


def bounded_subject(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Validates a subject; passed over once enough are wrong."""
    if isinstance(info.context, Budget) and info.context.subjects <= 0:
        raise PydanticOmit
    try:
        return handler(value)
    except ValidationError:
        if isinstance(info.context, Budget):
            info.context.subjects -= 1
        raise


_HANDED_DOWN = {"on_missing_concept": "skip", "dynamic_prompts": True}


def handed_down(data: Any) -> Any:
    """A job's plain data with what it says of all subjects said of each one that says nothing itself."""
    subjects = data.get("subjects") if isinstance(data, Mapping) else None
    if not isinstance(subjects, (list, tuple)):
        return data
    said = {key: value for key, value in _HANDED_DOWN.items() if data.get(key) == value}
    if not said:
        return data
    return {**data, "subjects": [{**said, **one} if isinstance(one, Mapping) else one for one in subjects]}


def checked(
    cls: type[Any],
    data: Any,
    handler: Callable[[Any], Any],
    check: Callable[[Any], Iterable[Finding]],
    info: ValidationInfo,
) -> Any:
    """Runs pydantic's own checks and ours, so that a file's author sees the findings of both at once."""
    limit = max(info.context.findings, 1) if isinstance(info.context, Budget) else None
    try:
        value = handler(data)
    except ValidationError as error:
        lines = [_again(line) for line in error.errors(include_url=False)]
        findings = list(islice(check(data), limit))
        raise ValidationError.from_exception_data(cls.__name__, lines + _details(findings)) from None
    findings = list(islice(check(value), limit))
    if isinstance(info.context, Budget):
        info.context.findings -= len(findings)
    if findings:
        raise invalid(cls, findings)
    return value


def invalid(cls: type[Any], findings: Sequence[Finding]) -> ValidationError:
    """Findings as pydantic raises them."""
    return ValidationError.from_exception_data(cls.__name__, _details(findings))


def relocated(cls: type[Any], error: ValidationError, move: Callable[[Loc], Loc]) -> ValidationError:
    """An error with the places of its findings told otherwise, each place once."""
    lines: dict[Loc, InitErrorDetails] = {}
    for line in error.errors(include_url=False):
        place = move(line["loc"])
        lines.setdefault(place, _again({**line, "loc": place}))
    return ValidationError.from_exception_data(cls.__name__, list(lines.values()))


def _details(findings: Sequence[Finding]) -> list[InitErrorDetails]:
    return [
        InitErrorDetails(type="missing", loc=found.loc, input=None)
        if found.value is MISSING
        else InitErrorDetails(type=fault(found.fix), loc=found.loc, input=found.value)
        for found in findings
    ]


def _again(line: Any) -> InitErrorDetails:
    """An error as pydantic takes it back."""
    custom = line["type"] == fault("").type
    kind: str | PydanticCustomError = fault(line["ctx"]["fix"]) if custom else line["type"]
    return InitErrorDetails(type=kind, loc=line["loc"], input=line["input"], ctx=line.get("ctx", {}))
