"""Pictures that users give: bytes from outside become upright sRGB pictures of the job's size, with their masks. Pure.

* ``formats``: which bytes are a picture, of what size, without decoding any of it.
* ``opening``: decoding, with limits: orientation, colour profiles, transparency, huge pictures.
* ``masks``: where the subject is: read from a file, packed for the index, or drawn over its picture for people.
* ``hints``: what ControlNets were trained to see, made of it: edges, outlines, silhouettes.
* ``memory``: pictures that need no decoding.
* ``fitting``: a picture of any shape at the size that is rendered.

``provenance`` is about the other pictures, those that are made: what their files say of how they came to be.
"""

from consistory_ray.pictures.fitting import FITS, Fit, fit
from consistory_ray.pictures.formats import MAX_BYTES, MAX_PIXELS, Header, read_header
from consistory_ray.pictures.masks import (
    check_mask,
    decode_mask,
    draw_mask,
    encode_mask,
    open_mask,
    open_masked,
    shown_by,
)
from consistory_ray.pictures.memory import picture_of
from consistory_ray.pictures.opening import Picture, open_picture

__all__ = [
    "FITS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Fit",
    "Header",
    "Picture",
    "check_mask",
    "decode_mask",
    "draw_mask",
    "encode_mask",
    "fit",
    "open_mask",
    "open_masked",
    "open_picture",
    "picture_of",
    "read_header",
    "shown_by",
]
