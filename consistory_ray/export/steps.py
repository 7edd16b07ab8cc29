"""Which steps a picture goes through, in which order: cut out, trim, scale, pad, powers of two, marks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from consistory_ray.export.cutting import cut_out
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.pictures import Step, pad, power_of_two, scale, trim


def steps(options: PictureOptions, marks: Sequence[Step] = ()) -> tuple[Step, ...]:
    """What is done with each picture, in order.

    Args:
        options: what is asked for.
        marks: further steps, at the end: what changes pixels without changing their number.
    """
    made: list[Step] = []
    if options.sprites:
        made.append(partial(cut_out, matting=options.matting))
        made += [trim] if options.trim else []
    if options.scale != 1 or options.size is not None:
        made.append(partial(scale, factor=options.scale, longer=options.size))
    if options.padding:
        made.append(partial(pad, pixels=options.padding))
    if options.power_of_two:
        made.append(power_of_two)
    return (*made, *marks)
