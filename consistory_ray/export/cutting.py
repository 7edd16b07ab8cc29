"""The subject alone, on transparent ground: from the run's mask, refined to pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from consistory_ray.export.matting import by_closed_form, by_rembg, by_tokens
from consistory_ray.export.options import Matting
from consistory_ray.export.pictures import NotCutOutError, Picture, touched_sides
from consistory_ray.pictures.masks import decode_mask


def cut_out(picture: Picture, matting: Matting) -> Picture:
    """The picture as RGBA, transparent where its subject is not.

    Args:
        picture: RGB.
        matting: see :class:`.options.PictureOptions`.

    Raises:
        NotCutOutError: nobody knows where its subject is, or nothing in it is.
    """
    if matting == "rembg":
        cut = by_rembg(picture.image)
    else:
        mask = decode_mask(picture.source.mask)
        if mask is None:
            fix = "rendered by an older version, or an anchor: use --matting rembg for it"
            raise NotCutOutError("no_mask", f"the index holds no mask of it ({fix})")
        if not mask.any():
            raise NotCutOutError("empty_mask", "its mask is empty: the run has not found its subject in it")
        cut = (by_tokens if matting == "none" else by_closed_form)(picture.image, mask)
    if not (cut.alpha >= 0.5).any():
        raise NotCutOutError("empty_mask", "nothing is left of its subject")
    sides = touched_sides(cut.alpha)
    notes = (f"touches the frame: {', '.join(sides)}",) if sides else ()
    rgba = np.dstack([cut.colours, cut.alpha])
    image = Image.fromarray((rgba * 255).round().astype(np.uint8))
    return replace(picture.changed(image), notes=(*picture.notes, *notes))
