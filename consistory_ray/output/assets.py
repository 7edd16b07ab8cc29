"""Picture files: encoded with their generation parameters inside, written whole, and recognised again later.

Two text chunks precede the pixels. ``parameters`` is the layout that common image tools and web interfaces read.
``consistory`` is JSON with everything that identifies the asset, so that a picture whose index row was lost (a kill
between the two writes) can be indexed without rendering it again. An XMP packet behind them says that a model made the
picture. None of them holds a time or a machine's name: the bytes of a picture file depend on the asset and, for a
scene, on the anchor cache that it was rendered from.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field

from consistory_ray.errors import AssetError
from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.guards.redaction import redacted
from consistory_ray.output.storage import OutputStore, as_store
from consistory_ray.pictures.provenance import PACKET, XMP_KEYWORD

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset, SubjectPlan

PARAMETERS_KEY = "parameters"
CONSISTORY_KEY = "consistory"
MASK_ENDING = ".mask.png"
"""Of files that show people what was taken for the subject in a picture that they gave."""
METADATA_VERSION = 1
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER_BYTES = 33
MAX_PICTURE_PIXELS = 8192 * 8192
_METADATA_LIMITS = Limits(bytes=4 << 20, values=20_000, depth=16)
PNG_LEVEL = 1
"""At 1024 px a quarter of level 6's time for 12 % more bytes (``benchmarks/encoding.py``)."""


_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Parameters(BaseModel):
    """The types of what a picture says of itself; it may say less, and more."""

    model_config = ConfigDict(strict=True, extra="ignore")

    asset_id: str = ""
    kind: Literal["anchor", "scene"] = "scene"
    subject: str = ""
    scene: str = ""
    prompt: str = ""
    seed: _Whole = 0
    anchor_seeds: list[_Whole] = []
    settings_hash: str = ""
    model: str = ""
    model_fingerprint: str = ""
    control: list[dict[str, Any]] = []
    loras: list[dict[str, Any]] = []
    profile: Annotated[str, Field(max_length=40)] | None = None
    take: Annotated[int, Field(ge=1, lt=2**31)] = 1
    mask: Annotated[str, Field(max_length=1 << 16)] | None = None
    take_of: str | None = None
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    scored_by: Annotated[str, Field(max_length=1000)] | None = None
    cache_sha256: Any = None  # whoever needs it looks at it: a picture can do without


@dataclass(frozen=True, slots=True)
class WrittenAsset:
    """A picture file that is completely on storage: its path below the output, size in bytes, and SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A picture's score, and the metric, measure and version that it is of."""

    value: float
    scored_by: str


def asset_parameters(
    asset: Asset,
    subject: SubjectPlan,
    *,
    model: str,
    model_fingerprint: str,
    cache_sha256: str | None = None,
    score: Scored | None = None,
    mask: bytes | None = None,
) -> dict[str, Any]:
    """Everything that identifies an asset, in the form that :func:`encode_png` and the index rows take.

    Args:
        asset: an anchor or a scene of ``subject``.
        subject: the plan of its subject.
        model: the model as the job names it.
        model_fingerprint: the loaded weights' fingerprint.
        cache_sha256: of the anchor cache that a scene is rendered from. Without it the key is absent, as it is in
            anchors and in older pictures.
        score: what was found in it, if somebody has looked.
        mask: where its subjects are, as the index takes it.
    """
    origin: dict[str, Any] = {} if cache_sha256 is None else {"cache_sha256": cache_sha256}
    if asset.kind == "anchor" and subject.pictures:
        picture = subject.pictures[subject.anchors.index(asset)]
        origin["given"] = dict(zip(("sha256", "mask_sha256", "fit"), picture.identity, strict=True))
    return {
        "asset_id": asset.asset_id,
        "kind": asset.kind,
        "subject": subject.subject_id,
        "scene": asset.scene_id,
        "path": asset.path,
        "prompt": asset.prompt,
        "negative_prompt": subject.settings.negative_prompt,
        **asset.words.to_dict(),
        "seed": asset.seed,
        "anchor_seeds": [seed for _, seed in subject.anchor_prompts] or [anchor.seed for anchor in subject.anchors],
        "concepts": list(subject.concepts),
        "settings": subject.settings.to_dict(),
        "settings_hash": subject.settings.digest(),
        "model": redacted(model),
        "model_fingerprint": model_fingerprint,
        **({} if subject.settings.profile == "exact" else {"profile": subject.settings.profile}),
        **origin,
        **({"control": [control.to_dict() for control in asset.control]} if asset.control else {}),
        **({"take": asset.take, "take_of": asset.take_of} if asset.take_of else {}),
        **({} if mask is None else {"mask": base64.b64encode(mask).decode()}),
        **({} if score is None else {"score": score.value, "scored_by": score.scored_by}),
        **subject.loaded.told(),
    }


def stored_mask(parameters: Mapping[str, Any]) -> bytes | None:
    """The mask that a picture's parameters hold, as the index takes it; None where they hold none."""
    text = parameters.get("mask")
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:  # of a picture that somebody made up
        return None


def encode_png(image: Image.Image, parameters: Mapping[str, Any], level: int = PNG_LEVEL) -> bytes:
    """A picture as PNG bytes, with its parameters in text chunks, and the statement that a model made it.

    Args:
        image: the picture, 8 bits per channel.
        parameters: JSON-ready values as :func:`asset_parameters` makes them. ``asset_id``, ``prompt`` and ``seed``
            are needed; ``settings`` (the method's settings as a mapping), ``negative_prompt`` and ``model`` are shown
            to other tools when present; all others are kept in the JSON chunk. With ``given`` it is a picture that
            was given, of which nothing is stated.
        level: zlib's, 0 (largest and fastest) to 9. The pixels are the same with all of them.

    Returns:
        The same bytes for the same picture, parameters and level.

    Raises:
        AssetError: the picture cannot be encoded, or the parameters are incomplete or not JSON.
    """
    missing = [key for key in ("asset_id", "prompt", "seed") if key not in parameters]
    if missing:
        raise AssetError(f"a picture's parameters lack {', '.join(missing)}")
    info = PngImagePlugin.PngInfo()
    try:
        _add_text(info, PARAMETERS_KEY, _web_ui_text(parameters, image.size))
        # ASCII JSON survives any text, lone surrogates included
        _add_text(info, CONSISTORY_KEY, json.dumps({"version": METADATA_VERSION, **parameters}, sort_keys=True))
        if not parameters.get("given"):
            info.add_itxt(XMP_KEYWORD, PACKET)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", pnginfo=info, compress_level=level)
    except (TypeError, ValueError, OSError) as error:
        raise AssetError(f"asset {parameters['asset_id']} cannot be encoded: {error}") from error
    return buffer.getvalue()


def mask_path(path: str) -> str:
    """Where, beside the picture at ``path``, another one shows what was taken for the subject in it."""
    return f"{path.removesuffix('.png')}{MASK_ENDING}"


def write_asset(output: str | os.PathLike[str] | OutputStore, path: str, data: bytes) -> WrittenAsset:
    """Write a picture file whole, replacing one of the same name.

    Raises:
        StorageError: the storage failed; there is no file, or the old one.
        InputError: ``path`` would leave the output.
    """
    as_store(output).write_atomic(path, data)
    return WrittenAsset(path, len(data), hashlib.sha256(data).hexdigest())


def read_metadata(data: bytes) -> dict[str, Any] | None:
    """The ``consistory`` JSON of a picture file, without decoding its pixels.

    Returns:
        Values of which those that an index row takes are of the right types; None for any file that has no such.
    """
    found = _metadata_chunk(data)
    if found is None:
        return None
    _, text = found
    try:
        values = parse_json(text, _METADATA_LIMITS)
        _Parameters.model_validate(values)
    except ValueError:
        return None
    known: dict[str, Any] = values
    return known


def _metadata_chunk(data: bytes) -> tuple[int, bytes] | None:
    """Where the picture's ``consistory`` chunk begins, and its text. Nothing is decompressed or decoded."""
    place, beginning = len(_PNG_SIGNATURE), CONSISTORY_KEY.encode() + b"\0"
    if not data.startswith(_PNG_SIGNATURE):
        return None
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if end > len(data) or kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"tEXt" and data.startswith(beginning, place + 8):
            text = data[place + 8 + len(beginning) : end - 4]
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            return (place, text) if zlib.crc32(data[place + 4 : end - 4]) == checksum else None
        place = end
    return None


def relabelled(data: bytes, changes: Mapping[str, Any]) -> bytes | None:
    """A picture file of this package with some of its parameters changed, and everything else as it is.

    Args:
        data: a whole file as :func:`encode_png` makes them.
        changes: what replaces the values of the ``consistory`` JSON.

    Returns:
        What :func:`encode_png` would make of the same picture with the changed parameters, as long as other tools are
        shown none of those; None for any other file.
    """
    values, found = read_metadata(data), _metadata_chunk(data)
    if values is None or found is None:
        return None
    place, old = found
    head = CONSISTORY_KEY.encode() + b"\0"
    text = head + json.dumps({**values, **changes}, sort_keys=True).encode("ascii")
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return data[:place] + chunk + data[place + 12 + len(head) + len(old) :]


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of a picture file that is whole (checksums, end) and can be decoded, or None."""
    if not data.endswith(_PNG_END):
        return None
    try:
        with open_picture(data) as image:
            image.verify()
        with open_picture(data) as image:  # verify() leaves an image that cannot be loaded
            image.load()
            return image.width, image.height
    except Exception:  # decoders have dozens of ways to fail on bytes that were made up
        return None


def open_picture(data: bytes) -> Image.Image:
    """A picture file of an output, its pixels not decoded yet.

    Whoever decodes them has to expect every kind of exception from bytes that somebody made up.

    Raises:
        ValueError: it is no still PNG of at most 8192 x 8192 pixels; nothing of it was decoded.
    """
    if not data.startswith(_PNG_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < _HEADER_BYTES:
        raise ValueError("it is no PNG")
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < width * height <= MAX_PICTURE_PIXELS:
        raise ValueError(f"it is {width} x {height} pixels, more than are looked at")
    if _has_chunk(data, b"acTL"):
        raise ValueError("it is an animation")
    return Image.open(io.BytesIO(data), formats=["PNG"])


def _has_chunk(data: bytes, wanted: bytes) -> bool:
    """Whether there is a chunk of that kind before the pixels."""
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(data) and data[place + 4 : place + 8] not in (wanted, b"IDAT"):
        (length,) = struct.unpack_from(">I", data, place)
        place += 12 + length
    return data[place + 4 : place + 8] == wanted


_SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
"""Schedulers as web interfaces name them."""


def _web_ui_text(parameters: Mapping[str, Any], size: tuple[int, int]) -> str:
    settings = parameters.get("settings") or {}
    fields: dict[str, Any] = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": _SAMPLERS.get(settings.get("scheduler", "ddim"), settings.get("scheduler")),
        "Schedule type": str(settings.get("sigma_schedule") or "").capitalize() or None,
        "CFG scale": settings.get("guidance_scale"),
        "Seed": parameters["seed"],
        "Size": f"{size[0]}x{size[1]}",
        "Model": parameters.get("model"),
        "Model hash": str(parameters.get("model_fingerprint") or "")[:10] or None,
    }
    negative = parameters.get("negative_prompt")
    lines = [str(parameters["prompt"])]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _add_text(info: PngImagePlugin.PngInfo, key: str, text: str) -> None:
    """A tEXt chunk for ASCII, an iTXt chunk, which is UTF-8, for all else; readers stop at a NUL, so none is left."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    if text.isascii():
        info.add_text(key, text)
    else:
        info.add_itxt(key, text)
