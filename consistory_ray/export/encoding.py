"""Bytes to pictures and back: a source file opened and checked, an exported one encoded, with what it says of itself.

PNG keeps the source's text chunks. WebP (lossless) has none: there ``parameters`` is the EXIF user comment, where web
interfaces look for it, and the JSON the EXIF image description. Both say by XMP that a model made the picture, whatever
else is kept. The same picture and options make the same bytes.
"""

from __future__ import annotations

import hashlib
import io

from PIL import Image, PngImagePlugin

from consistory_ray.errors import AssetError
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.pictures import Box, Picture
from consistory_ray.export.selection import Source
from consistory_ray.output.assets import CONSISTORY_KEY, PARAMETERS_KEY, open_picture, read_metadata
from consistory_ray.pictures.provenance import PACKET, XMP_KEYWORD, marked

PNG_LEVEL = 6
"""Zlib's own; an export is written once and shipped often."""
_USER_COMMENT, _EXIF_IFD, _DESCRIPTION = 0x9286, 0x8769, 0x010E
_KEPT = (PARAMETERS_KEY, CONSISTORY_KEY)


def opened(source: Source, data: bytes) -> Picture:
    """A source file as the first step takes it.

    Raises:
        AssetError: it is not the picture that was indexed, or cannot be decoded.
    """
    if hashlib.sha256(data).hexdigest() != source.sha256:
        advice = "run `consistory-ray verify --repair` on the output, then render again"
        raise AssetError(f"{source.path} is not the picture that was indexed: {advice}")
    try:
        with open_picture(data) as image:
            texts = {key: str(value) for key, value in getattr(image, "text", {}).items() if key in _KEPT}
            pixels = image.convert("RGB")
    except Exception as error:  # decoders have dozens of ways to fail on bytes that were made up
        raise AssetError(f"{source.path} cannot be decoded: {error}") from error
    whole = Box(0, 0, pixels.width, pixels.height)
    made = source.kind == "scene" or not (read_metadata(data) or {"given": "perhaps"}).get("given")
    return Picture(source, pixels, whole, whole, texts, file=data, made=made)


def encoded(picture: Picture, options: PictureOptions) -> bytes:
    """A picture as the bytes of a file; those of its source where nothing was changed."""
    if options.ending == "webp":
        return _webp(picture, options)
    if picture.file is not None and options.metadata:
        return marked(picture.file) if picture.made else picture.file
    info = PngImagePlugin.PngInfo()
    for key, text in picture.texts.items() if options.metadata else ():
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    if picture.made:
        info.add_itxt(XMP_KEYWORD, PACKET)
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG", pnginfo=info, compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _webp(picture: Picture, options: PictureOptions) -> bytes:
    exif = Image.Exif()
    if options.metadata and PARAMETERS_KEY in picture.texts:
        comment = b"UNICODE\0" + picture.texts[PARAMETERS_KEY].encode("utf-16-be", "replace")
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    if options.metadata and CONSISTORY_KEY in picture.texts:
        exif[_DESCRIPTION] = picture.texts[CONSISTORY_KEY].encode("ascii", "replace").decode()
    buffer = io.BytesIO()
    said = PACKET.encode() if picture.made else b""
    picture.image.save(buffer, "WEBP", lossless=True, exact=False, method=4, exif=exif.tobytes(), xmp=said)
    return buffer.getvalue()
