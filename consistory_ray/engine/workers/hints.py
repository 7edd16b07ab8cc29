"""The hints that lead a worker's pictures: read from the output's copies, prepared once, as the pipeline takes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from consistory_ray.errors import AssetError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.engine.inputs import InputReader
    from consistory_ray.plan.controls import PlannedControl
    from consistory_ray.plan.inputs import PlannedFile
    from consistory_ray.plan.plan import Asset

KEPT_HINTS = 64


class HintReader:
    """Hints of the pictures that a renderer makes; the last ones stay in memory.

    Args:
        inputs: reads the output's copies.
    """

    def __init__(self, inputs: InputReader) -> None:
        self._inputs = inputs
        self._prepared = lru_cache(KEPT_HINTS)(self._prepare)

    def of(self, assets: Sequence[Asset]) -> list[Any] | None:
        """For each asset what leads it, as :class:`~consistory_ray.ConsiStoryPipeline` takes it; None for nothing.

        Raises:
            AssetError: a hint is gone, or damaged.
            StorageError: the output failed.
        """
        if not any(asset.control for asset in assets):
            return None
        return [[self._hint(control) for control in asset.control] or None for asset in assets]

    def _hint(self, control: PlannedControl) -> Any:
        from consistory_ray.consistory.method.hints import ControlHint  # imports torch

        image = self._prepared(control.file, control.preprocess)
        return ControlHint(image, control.scale, control.start, control.end, control.net, control.mode)

    def _prepare(self, file: PlannedFile, preprocess: str) -> Image:
        from consistory_ray.pictures import open_picture
        from consistory_ray.pictures.hints import prepare_hint

        try:
            return prepare_hint(open_picture(self._inputs.read(file), file.path), preprocess)
        except InputError as error:  # it could be read when the job was
            raise AssetError(str(error)) from error
