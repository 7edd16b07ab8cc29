"""What is no picture although it looks like one: the one rule of the pipeline and the workers. Needs numpy only.

Networks that overflow give pictures of a single colour, mostly black, and nothing raises an error. What was really
drawn is never quite of one colour: an autoencoder leaves differences of a few 1/255 in the plainest sky. So a picture
is refused if *every* pixel has the same 8-bit colour; one pixel that differs by 1/255 is enough to keep it, and a
picture of one pixel is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NOT_FINITE = "the model produced numbers that are not finite; bfloat16 or float32 may help"


def picture_fault(picture: Any) -> str | None:
    """Why a picture must not be delivered, None if it may.

    Args:
        picture: a PIL image, or an array [height, width, channels] of uint8, or of floats in 0..1.
    """
    pixels = np.asarray(picture)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            return NOT_FINITE
        pixels = (pixels * 255).round()
    colours = pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)
    if len(colours) < 2 or not (colours == colours[0]).all():
        return None
    colour = ", ".join(str(int(value)) for value in colours[0])
    return f"every pixel has the same colour ({colour}): the model overflowed; bfloat16 or float32 may help"
