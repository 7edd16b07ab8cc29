"""What a job's LoRAs, embeddings and VAE may be called, as far as it can be known before anything is opened.

A file or folder on this machine, an id on the Hugging Face hub or a file in one, a URL, or, of the bundled model, a
bundled one. Pure: nothing is opened or contacted.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from consistory_ray.errors import InputError
from consistory_ray.guards.places import place_of
from consistory_ray.jobs.model_names import BUNDLED_PREFIX, is_hub_id, model_name, pickled
from consistory_ray.settings import BUNDLED_MODEL

_FILE = ".safetensors"
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/?|/(?:blob|tree)/[^/?#]+/?([^?#]*))$",
    re.IGNORECASE,
)
_WAYS = (
    "give a .safetensors file (path or URL), a folder with one, a Hugging Face id such as owner/name, or a file in one "
    "such as owner/name/file.safetensors"
)
_VAE_WAYS = "give a VAE: a Hugging Face id such as madebyollin/sdxl-vae-fp16-fix, a folder or a .safetensors file"


def adapter_name(text: str) -> tuple[str, str | None]:
    """A LoRA or embedding as the rest of the program names it, and what to change if it cannot be one, by its words.

    ``~`` is expanded and ``file:`` addresses become paths; everything else stays as it is written.
    """
    if is_bundled_name(text) or is_hub_id(text) or is_hub_file(text):
        return text, None
    if page := _HUB_PAGE.match(text):
        name = "/".join(part for part in (page.group(1), page.group(2)) if part)
        return text, f'write its id alone, "{name}"' if is_hub_id(name) or is_hub_file(name) else _WAYS
    try:
        place = place_of(text)
    except InputError as error:
        return text, f"{error.problems[0].fix}; {_WAYS}"
    if place.scheme == "chain":
        return text, f"chained and data URLs are not read: {_WAYS}"
    if place.scheme == "hf":
        return text, f'write its id alone, "{place.path}"'
    if (why := pickled(place.path.split("?", 1)[0])) and not (place.is_local and os.path.isdir(place.path)):
        return text, f"{why}: convert it to safetensors, or {_WAYS}"
    if place.is_local and any(len(os.fsencode(part)) > 255 for part in place.path.split("/")):
        return text, _WAYS
    return (place.path if place.is_local and text.startswith(("~", "file:", "local:")) else text), None


def vae_name(text: str) -> tuple[str, str | None]:
    """The same of a VAE, which is named like a model."""
    if text == BUNDLED_MODEL:
        return text, f"leave it out, the bundled model has its own; or {_VAE_WAYS}"
    return model_name(text, _VAE_WAYS)


def is_bundled_name(text: str) -> bool:
    """Whether it is called like something that is bundled with the bundled model."""
    return text.startswith(BUNDLED_PREFIX) and "/" not in text.removeprefix(BUNDLED_PREFIX) and _FILE not in text


def is_hub_file(text: str) -> bool:
    """Whether it is a file in a repository of the hub, as in owner/name/file.safetensors; such a path goes before."""
    parts = text.split("/")
    return (
        len(parts) > 2
        and text.endswith(_FILE)
        and is_hub_id("/".join(parts[:2]))
        and not any(part in ("", ".", "..") for part in parts)
        and ":" not in text
    )


def called_by(path: str) -> str:
    """What a file is called where nobody has named it: its name without the ending."""
    name = PurePosixPath(path.split("?", 1)[0].rstrip("/")).name if "://" in path else PurePosixPath(path).name
    return name.removesuffix(_FILE) or path
