"""CLIP and DINOv2 through ``transformers``, with weights that the user has: safetensors in a folder, or a hub id.

The layouts are those of the hub, such as ``openai/clip-vit-base-patch32`` and ``facebook/dinov2-base``:
``config.json``, ``model.safetensors``, ``preprocessor_config.json``, and CLIP's tokenizer. No code that comes with
weights is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consistory_ray.errors import CheckpointError, Problem
from consistory_ray.quality.metrics import Embeddings, MetricOptions
from consistory_ray.quality.weights import files_digest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_CODE = 1
"""Counted up with every change of what is computed here."""
_FILES = ("*.json", "*.txt", "*.safetensors")
CLIP_SCALE = 2.5
"""CLIP-T is 2.5 max(cos, 0): CLIPScore of Hessel et al. 2021, section 3, whose weight w is 2.5."""


class ClipMetric:
    """CLIP: ``embed`` is CLIP-I, ``align`` CLIP-T.

    Raises:
        CheckpointError: the weights are not named, absent, or no CLIP.
    """

    name = "clip"
    finds_subject = False

    def __init__(self, options: MetricOptions) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        folder = _folder(self.name, options, "openai/clip-vit-base-patch32")
        self._device = options.device
        self._model: Any = _loaded(self.name, CLIPModel, folder, options.device)
        self._prepare: Any = _loaded(self.name, CLIPImageProcessor, folder)
        self._tokens: Any = _loaded(self.name, CLIPTokenizer, folder)
        self.version = _version(folder)

    def embed(self, images: Sequence[Image]) -> Embeddings:
        """CLIP's image embeddings, ``[N, D]``, of length 1."""
        width = int(self._model.config.projection_dim)
        return _units(lambda: self._seen(images)) if images else np.zeros((0, width), np.float32)

    def align(self, images: Sequence[Image], texts: Sequence[str]) -> NDArray[np.float32]:
        """:data:`CLIP_SCALE` times the cosine of picture and text, 0 where that is negative. Texts are cut off at
        CLIP's own length."""
        if not images:
            return np.zeros(0, np.float32)
        pictures, words = self.embed(images), _units(lambda: self._read(texts))
        return np.asarray(CLIP_SCALE * np.clip((pictures * words).sum(1), 0, None), np.float32)

    def _seen(self, images: Sequence[Image]) -> Tensor:
        pixels = self._prepare(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        seen = self._model.vision_model(pixel_values=pixels).pooler_output
        projected: Tensor = self._model.visual_projection(seen)
        return projected

    def _read(self, texts: Sequence[str]) -> Tensor:
        words = self._tokens(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._device)
        read = self._model.text_model(**words).pooler_output
        projected: Tensor = self._model.text_projection(read)
        return projected


class DinoMetric:
    """DINOv2: ``embed`` is its class token, ``patches`` its patch tokens, which correspond between pictures.

    Raises:
        CheckpointError: the weights are not named, absent, or no DINOv2.
    """

    name = "dinov2"
    finds_subject = False

    def __init__(self, options: MetricOptions) -> None:
        from transformers import AutoImageProcessor, Dinov2Model

        folder = _folder(self.name, options, "facebook/dinov2-base")
        self._device = options.device
        self._model: Any = _loaded(self.name, Dinov2Model, folder, options.device)
        self._prepare: Any = _loaded(self.name, AutoImageProcessor, folder)
        self.version = _version(folder)

    def embed(self, images: Sequence[Image]) -> Embeddings:
        """Class tokens after the last norm, ``[N, D]``, of length 1."""
        width = int(self._model.config.hidden_size)
        return _units(lambda: self._tokens(images)[0][:, 0]) if images else np.zeros((0, width), np.float32)

    def patches(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Patch tokens after the last norm, ``[N, rows, columns, D]``, each of length 1."""

        def seen() -> Tensor:
            tokens, (rows, columns) = self._tokens(images)
            return tokens[:, 1:].reshape(len(images), rows, columns, -1)

        return _units(seen)

    def _tokens(self, images: Sequence[Image]) -> tuple[Tensor, tuple[int, int]]:
        pixels = self._prepare(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        side = int(self._model.config.patch_size)
        tokens: Tensor = self._model(pixel_values=pixels).last_hidden_state
        return tokens, (pixels.shape[2] // side, pixels.shape[3] // side)


def _units(compute: Any) -> NDArray[np.float32]:
    """What is computed without gradients, its last dimension at length 1."""
    import torch

    with torch.inference_mode():
        found = torch.nn.functional.normalize(compute().float(), dim=-1)
        values: NDArray[np.float32] = found.cpu().numpy()
    return values


def _folder(name: str, options: MetricOptions, usual: str) -> Path:
    """Where a metric's weights are on this machine; those of the hub are fetched, or taken from its cache.

    Raises:
        CheckpointError: they are not named, or cannot be had.
    """
    from huggingface_hub import snapshot_download

    place = options.weights.get(name)
    if place is None:
        fix = f"give a folder or a Hugging Face id: --weights {name}={usual}"
        raise CheckpointError(f"{name} needs weights", [Problem("--weights", "", fix)])
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(place, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub raises all kinds
        fix = f"give a folder in the layout of {usual}, or a hub id that is reachable or cached"
        reason = f"the weights of {name} could not be found: {type(error).__name__}"
        raise CheckpointError(reason, [Problem("--weights", f"{name}={place}", fix)]) from error


def _loaded(name: str, kind: Any, folder: Path, device: str | None = None) -> Any:
    """A model (with a device, float32) or a processor from a folder.

    Raises:
        CheckpointError: it is not there, or not of that kind.
    """
    try:
        if device is None:
            return kind.from_pretrained(folder, local_files_only=True)
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
        return model.float().eval().to(device)
    except Exception as error:  # transformers raises all kinds
        fix = f"give {kind.__name__}'s files in one folder, weights as .safetensors"
        reason = f"{name} cannot be loaded: {type(error).__name__}: {error}"
        raise CheckpointError(reason, [Problem("--weights", f"{name}={folder}", fix)]) from error


def _version(folder: Path) -> str:
    return f"{_CODE}-{files_digest(path for pattern in _FILES for path in folder.glob(pattern))}"
