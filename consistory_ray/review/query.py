"""Which scenes somebody wants to see, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consistory_ray.errors import InputError
from consistory_ray.guards.problems import as_problems

State = Literal["undecided", "picked", "rejected", "reroll", "failed"]
"""Where a scene stands: one of these at a time. ``reroll``: a take was asked for that is not there yet. ``failed``: it
has no picture at all."""
STATES: tuple[State, ...] = get_args(State)
Only = Literal["", "undecided", "picked", "rejected", "reroll", "failed", "takes", "notes"]
Sort = Literal["order", "worst", "best", "newest"]


class Query(BaseModel):
    """A filter.

    Attributes:
        words: every one of them is in the subject, the scene or the prompt.
        subject: its name, whole.
        scene: a part of its name.
        only: a state, or ``takes`` (two or more to choose from, none picked) or ``notes``.
        fault: what kind of failure some take of it had.
        low, high: of the score of its picture.
        sort: ``order`` is the plan's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: str = Field("", max_length=200)
    subject: str = Field("", max_length=4096)
    scene: str = Field("", max_length=4096)
    only: Only = ""
    fault: str = Field("", max_length=200)
    low: float | None = Field(None, allow_inf_nan=False)
    high: float | None = Field(None, allow_inf_nan=False)
    sort: Sort = "order"


def parse_query(given: Mapping[str, str]) -> Query:
    """A filter from an address's parameters.

    Raises:
        InputError: with every one that cannot be used.
    """
    try:
        return Query.model_validate({key: value for key, value in given.items() if value != ""})
    except ValidationError as error:
        raise InputError("this filter cannot be used", as_problems(error)) from error
