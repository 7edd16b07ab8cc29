"""What a job's ``model`` may be, as far as it can be known before anything is loaded.

"miniature", an id on the Hugging Face hub, a folder in diffusers' layout, or a ``.safetensors`` file. People write more
than that: ``~/models/x``, ``file:///models/x``, the address of a download, a pickle. Each is put right or told.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import PurePosixPath

from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.guards.places import place_of
from consistory_ray.settings import BUNDLED_MODEL

MODEL_INDEX = "model_index.json"
BUNDLED_PREFIX = f"{BUNDLED_MODEL}/"
"""What the names of bundled LoRAs begin with."""
_HUB_NAME = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
_HUB_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+)", re.IGNORECASE)
_WEIGHTS = {
    **dict.fromkeys((".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle"), "pickled weights can run code"),
    **dict.fromkeys((".gguf", ".ggml", ".onnx", ".msgpack", ".h5"), "this kind of file cannot be read"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z"), "an archive cannot be read"),
}
_WAYS = (
    f'give "{BUNDLED_MODEL}", a Hugging Face id such as owner/name, a folder with {MODEL_INDEX} or a .safetensors file'
)
_NET_WAYS = (
    f'give "{BUNDLED_MODEL}", a Hugging Face id such as owner/name, a folder with config.json or a .safetensors file'
)
_FILE_URL = re.compile(r"(file|local):", re.IGNORECASE)
_FILE = ".safetensors"


def is_hub_id(model: str) -> bool:
    """Whether the hub's client takes it for an id; a folder of that name goes before."""
    return (
        _HUB_NAME.fullmatch(model) is not None
        and "--" not in model
        and ".." not in model
        and not model.endswith((".git", _FILE))
        and PurePosixPath(model).suffix.lower() not in _WEIGHTS
    )


def model_name(text: str, ways: str = _WAYS) -> tuple[str, str | None]:
    """A model as the rest of the program names it, and what to change if it cannot be one, judged by its words alone.

    ``~`` is expanded and ``file:`` addresses become paths; everything else stays as it is written.

    Args:
        text: as somebody has written it.
        ways: what it may be, in words.
    """
    if text == BUNDLED_MODEL or is_hub_id(text):
        return text, None
    page = _HUB_PAGE.match(text)
    if page:
        owner_and_name = "/".join(page.group(1).strip("/").split("/")[:2])
        return text, f'write its id alone, "{owner_and_name}"' if is_hub_id(owner_and_name) else ways
    try:
        place = place_of(text)
    except InputError as error:
        return text, f"{error.problems[0].fix}; {ways}"
    if place.scheme == "hf":
        return text, f'write its id alone, "{place.path}"' if is_hub_id(place.path) else ways
    if not place.is_local:
        return text, f"fetch it and {ways}: models are not read from URLs"
    why = pickled(place.path)
    if why and not os.path.isdir(place.path):
        return text, f"{why}: convert it to safetensors, or {ways}"
    if any(len(os.fsencode(part)) > 255 for part in place.path.split("/")):
        return text, ways
    return (place.path if text.startswith("~") or _FILE_URL.match(text) else text), None


def pickled(path: str) -> str | None:
    """Why weights in a file of that name are not read; None where they may be."""
    return _WEIGHTS.get(PurePosixPath(path).suffix.lower())


def controlnet_name(text: str) -> tuple[str, str | None]:
    """The same of a ControlNet: the bundled one, which is called like the bundled model, or one from elsewhere."""
    return model_name(text, _NET_WAYS)


def check_model_is_there(model: str) -> None:
    """Refuse a folder or file that is not there or is no model; of hub ids nothing can be known here.

    Raises:
        CheckpointError: with what to give instead.
    """
    if model == BUNDLED_MODEL:
        return
    if os.path.isdir(model):
        if not os.path.isfile(os.path.join(model, MODEL_INDEX)):
            raise _unusable(model, f"there is no {MODEL_INDEX} in this folder{_inside(model)}: {_WAYS}")
    elif os.path.exists(model):
        if not os.path.isfile(model):
            raise _unusable(model, f"this is neither a folder nor a file: {_WAYS}")
        if not model.endswith(_FILE):
            raise _unusable(model, f"this file is no model: {_WAYS}")
    elif not is_hub_id(model):
        what = "file" if model.endswith(_FILE) else "folder"
        raise _unusable(model, f"there is no such {what} on this machine, check the path; or {_WAYS}")


def _inside(folder: str) -> str:
    """What to give instead, if the folder holds a single file with weights."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in islice(entries, 1000) if entry.name.endswith(_FILE))
    except OSError:
        return ""
    return f" (did you mean {found[0]} in it?)" if len(found) == 1 else ""


def _unusable(model: str, fix: str) -> CheckpointError:
    return CheckpointError("the model cannot be used", [Problem("model", ascii(model)[1:-1][:200], fix)])
