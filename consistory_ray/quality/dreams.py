"""DreamSim through its own package, which is not among the extras: it wants a torchvision that fits the torch that is
installed, and brings open_clip and timm. ``pip install dreamsim`` beside them.

Its checkpoints are pickles that the package itself downloads and loads: use those of its authors only.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.quality.metrics import Embeddings, MetricOptions

if TYPE_CHECKING:
    from PIL.Image import Image

_CODE = 1
"""Counted up with every change of what is computed here."""
DEFAULT_TYPE = "ensemble"


class DreamSimMetric:
    """DreamSim (Fu et al. 2023): its distance is 1 - the cosine of embeddings, so DreamSim-F is ``1 - dreamsim_among``
    and DreamSim-B ``1 - dreamsim_background``.

    Weights are ``dreamsim=FOLDER``, the package's ``cache_dir``, or ``dreamsim=FOLDER:TYPE`` with a ``dreamsim_type``
    such as ``dino_vitb16``; without a type the ensemble.

    Raises:
        InputError: the package is not installed, or no weights are named.
        CheckpointError: it cannot load them.
    """

    name = "dreamsim"
    finds_subject = False

    def __init__(self, options: MetricOptions) -> None:
        try:
            from dreamsim import dreamsim
        except ImportError as error:
            raise InputError(
                "DreamSim cannot be used", [Problem("dreamsim", str(error), "pip install dreamsim")]
            ) from error
        given = options.weights.get(self.name)
        if given is None:
            fix = "give the folder with its checkpoints: --weights dreamsim=FOLDER"
            raise InputError("dreamsim needs weights", [Problem("--weights", "", fix)])
        place, _, kind = given.partition(":")
        self._device, kind = options.device, kind or DEFAULT_TYPE
        try:
            model, self._prepare = dreamsim(pretrained=True, device=options.device, cache_dir=place, dreamsim_type=kind)
        except Exception as error:  # torch, open_clip and the download raise all kinds
            fix = "give the folder with its checkpoints, or one that they can be downloaded to"
            reason = f"dreamsim cannot be loaded: {type(error).__name__}: {error}"
            raise CheckpointError(reason, [Problem("--weights", given, fix)]) from error
        self._model: Any = model.eval()
        files = sorted(path for path in Path(place).rglob("*") if path.is_file())
        sizes = [(path.relative_to(place).as_posix(), path.stat().st_size) for path in files]
        told = "-".join(f"{name}.{size}" for name, size in sizes if kind.split("_")[0] in name) or "unknown"
        self.version = f"{_CODE}-{importlib.metadata.version('dreamsim')}-{kind}-{told}"[:200]

    def embed(self, images: Sequence[Image]) -> Embeddings:
        """DreamSim's embeddings, ``[N, D]``, of length 1."""
        import torch

        if not images:
            return np.zeros((0, 1), np.float32)
        with torch.inference_mode():
            pixels = torch.cat([self._prepare(image) for image in images]).to(self._device)
            found = torch.nn.functional.normalize(self._model.embed(pixels).float(), dim=1)
        return np.asarray(found.cpu().numpy(), np.float32)
