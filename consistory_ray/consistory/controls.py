"""What a caller wants pictures to be led by, checked: one hint, several or none for each picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

from consistory_ray.consistory.method.backbone import Backbone, Controllable
from consistory_ray.consistory.method.hints import ControlHint, Hints, mode_number
from consistory_ray.consistory.method.request import Batch
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.numerics import whole_number
from consistory_ray.pictures import Picture, picture_of

Controls: TypeAlias = Sequence[ControlHint | Sequence[ControlHint] | None]
"""One entry per picture."""


def led(backbone: Backbone, batch: Batch, controls: Controls | None) -> Batch:
    """A batch with its hints, each one's image a :class:`~consistory_ray.pictures.opening.Picture`.

    Raises:
        InputError: naming every hint that cannot be used with this model, and why.
    """
    if controls is None:
        return batch
    hints, problems = _listed(controls, len(batch.prompts))
    modes = backbone.control_modes if isinstance(backbone, Controllable) else ()
    if any(hints) and not modes:
        fix = "give the pipeline one with controlnets=[...]" if isinstance(backbone, Controllable) else _NO_SEAM
        problems.append(Problem("controls", f"{sum(map(len, hints))} hints, no ControlNet", fix))
    else:
        for place, hint in _places(hints):
            problems += _problems(place, hint, modes)
    opened: dict[int, Picture] = {}  # by the image's identity: often one leads many
    for place, hint in _places(hints):
        try:
            opened[id(hint.image)] = opened.get(id(hint.image)) or picture_of(hint.image, f"{place}.image")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError("the controls cannot be used", problems)
    opened_hints = tuple(
        tuple(dataclasses.replace(hint, image=opened[id(hint.image)]) for hint in some) for some in hints
    )
    return dataclasses.replace(batch, hints=opened_hints if any(hints) else ())


_NO_SEAM = "leave them out: this kind of model takes none"


def _listed(controls: Any, count: int) -> tuple[Hints, list[Problem]]:
    if isinstance(controls, ControlHint) or not isinstance(controls, Sequence) or len(controls) != count:
        found = str(len(controls)) if isinstance(controls, Sequence) else type(controls).__name__
        fix = f"give a list with one entry per prompt: {count} hints, lists of hints or None"
        return (), [Problem("controls", found, fix)]
    listed = tuple(
        () if entry is None else (entry,) if isinstance(entry, ControlHint) or not _is_list(entry) else tuple(entry)
        for entry in controls
    )
    fix = "give a ControlHint, a list of them or None"
    wrong = [(place, hint) for place, hint in _places(listed) if not isinstance(hint, ControlHint)]
    problems = [Problem(place, type(hint).__name__, fix) for place, hint in wrong]
    return (() if problems else listed), problems


def _is_list(entry: Any) -> bool:
    return isinstance(entry, Sequence) and not isinstance(entry, (str, bytes))


def _places(hints: Hints) -> list[tuple[str, ControlHint]]:
    return [
        (f"controls[{index}]" + (f"[{number}]" if len(some) > 1 else ""), hint)
        for index, some in enumerate(hints)
        for number, hint in enumerate(some)
    ]


def _problems(place: str, hint: ControlHint, modes: Sequence[Sequence[str]]) -> list[Problem]:
    finite = {name: _is_finite(getattr(hint, name)) for name in ("scale", "start", "end")}
    problems = [
        Problem(f"{place}.{name}", repr(getattr(hint, name)), "must be a finite number")
        for name, fine in finite.items()
        if not fine
    ]
    if finite["start"] and finite["end"] and not 0 <= hint.start < hint.end <= 1:
        fix = "must be shares of the steps, 0 <= start < end <= 1"
        problems.append(Problem(f"{place}.start, end", f"{hint.start!r}, {hint.end!r}", fix))
    net = whole_number(hint.net)
    if net is None or not 0 <= net < len(modes):
        fix = f"must be the position of one of the pipeline's ControlNets, 0 to {len(modes) - 1}"
        return [*problems, Problem(f"{place}.net", repr(hint.net), fix)]
    names = modes[net]
    if not names and hint.mode is not None:
        fix = "must be None: this ControlNet is for one kind of hint"
        problems.append(Problem(f"{place}.mode", repr(hint.mode), fix))
    if names and mode_number(hint.mode, names) is None:
        fix = f"must be one of {', '.join(names)}, or a number from 0 to {len(names) - 1}"
        problems.append(Problem(f"{place}.mode", repr(hint.mode), fix))
    return problems


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
