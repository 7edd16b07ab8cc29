"""The files that people send back, read with limits, and whose answer stands for which run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.outside import parse_json, read_regular
from consistory_ray.study.page import KEY_FILE
from consistory_ray.study.questions import Ask

MAX_FILE_BYTES = 1 << 20
Choice = Literal["left", "right", "tie"]
Name = Annotated[str, Field(min_length=1, max_length=200)]
_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyQuestion(_Strict):
    """What stood where in one question."""

    id: Name
    asks: Ask
    subject: str
    prompts: tuple[str, ...]
    left: Name
    right: Name


class Key(_Strict):
    """The file that stays with whoever asks."""

    id: Name
    seed: int
    runs: tuple[Name, ...]
    questions: tuple[KeyQuestion, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Key:
        """Every question is about two of the runs, and no two share a name."""
        if len({question.id for question in self.questions}) < len(self.questions):
            raise ValueError("two questions have one id")
        if any({one.left, one.right} - {*self.runs} or one.left == one.right for one in self.questions):
            raise ValueError("a question is not about two of the runs")
        return self


class GivenAnswer(_Strict):
    """One answer as the page writes it."""

    question: Name
    choice: Choice
    seconds: float = Field(ge=0)


class AnswerFile(_Strict):
    """One person's answers as the page writes them."""

    study: Name
    person: Name
    answers: tuple[GivenAnswer, ...]


@dataclass(frozen=True)
class Answer:
    """One answer with what it was about.

    Attributes:
        person: a random name of whoever gave it.
        question: what was asked, with the runs on both sides.
        choice: the side.
        seconds: from seeing the question to the answer.
    """

    person: str
    question: KeyQuestion
    choice: Choice
    seconds: float


def read_key(folder: Path) -> Key:
    """The key of a study.

    Raises:
        InputError: there is none in the folder, or it is no key.
    """
    return _read(folder / KEY_FILE, Key, "give the folder that `consistory-ray study` wrote")


def read_answers(paths: Sequence[Path], key: Key) -> list[Answer]:
    """All answers of some files.

    Raises:
        InputError: with every file that cannot be read, is of another study, or holds a person's answers once more.
    """
    questions = {question.id: question for question in key.questions}
    found: dict[str, list[Answer]] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            given = _read(path, AnswerFile, "give a file that the page downloaded")
        except InputError as error:
            problems += error.problems
            continue
        wrong = _wrong(given, key, questions, found)
        problems += [Problem(str(path), value, fix) for value, fix in wrong]
        if not wrong:
            found[given.person] = [
                Answer(given.person, questions[one.question], one.choice, one.seconds) for one in given.answers
            ]
    answers = [answer for own in found.values() for answer in own]
    if not problems and not answers:
        problems.append(Problem("FILE", "no answer", "give files of people who answered at least one question"))
    if problems:
        raise InputError("these answers cannot be used", problems)
    return answers


def _wrong(given: AnswerFile, key: Key, known: Iterable[str], read: Iterable[str]) -> list[tuple[str, str]]:
    """What makes a file unusable: value and fix of each problem."""
    if given.study != key.id:
        return [(given.study, f"answers to study {key.id} are wanted, these are to another page")]
    ids = [one.question for one in given.answers]
    problems = [
        (name, "this page has no such question; the file was changed") for name in ids if name not in set(known)
    ]
    if len(set(ids)) < len(ids):
        problems.append((given.person, "a question is answered twice; the file was changed"))
    if given.person in set(read):
        problems.append((given.person, "this person's answers were given already; keep the latest file of each"))
    return problems


def _read(path: Path, kind: type[_Model], fix: str) -> _Model:
    try:
        data: Any = parse_json(read_regular(path, MAX_FILE_BYTES, follow=True))
        return kind.model_validate(data)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
        value = "; ".join(told)
    except (OSError, ValueError) as error:
        value = str(error) or type(error).__name__
    raise InputError("a file of the study cannot be read", [Problem(str(path), value, fix)])
