"""Adapters on the Hugging Face hub: which file of a repository it is, downloaded or from the cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from consistory_ray.adapters.files import CONFIGURATION, PREFERRED, chosen, unusable

_FIX = "give one that is reachable or cached, as owner/name or owner/name/file.safetensors"


def from_hub(where: str, path: str) -> Path:
    """The local file of an adapter on the hub.

    Args:
        where: the field that it was given in, for messages.
        path: ``owner/name`` or ``owner/name/file.safetensors``.

    Raises:
        CheckpointError: it is not there, out of reach and not cached, or it is not clear which file is meant.
    """
    owner, name, *rest = path.split("/")
    repository = f"{owner}/{name}"
    if rest:
        return _downloaded(where, path, repository, "/".join(rest))
    try:
        names = [str(each) for each in HfApi().list_repo_files(repository)]
    except Exception:  # out of reach: what was downloaded before may do
        return _downloaded(where, path, repository, PREFERRED[0])
    file = chosen(where, path, names)
    if file == PREFERRED[1] and CONFIGURATION in names:
        _downloaded(where, path, repository, CONFIGURATION)
    return _downloaded(where, path, repository, file)


def _downloaded(where: str, path: str, repository: str, file: str) -> Path:
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub raises all kinds: none of them is a bug here
        reason = f"the file could not be fetched from the hub: {type(error).__name__}: {error}"
        raise unusable(where, path, _FIX, reason) from error
