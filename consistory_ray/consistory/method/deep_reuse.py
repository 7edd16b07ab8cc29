"""Calls that reuse what an earlier one computed in the deep layers of the network (DeepCache, arXiv 2312.00858).

Between neighbouring steps the deep layers change least. A call in full keeps the input of the last ``up`` block; the
calls after it compute the outermost blocks only, 0.067 of a full call of SDXL's UNet. They have no layer that shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from consistory_ray.consistory.method.backbone import Network
from consistory_ray.consistory.method.conditioning import Conditioning, Rows


@dataclass
class Deep:
    """What a full call leaves for those that reuse it.

    Attributes:
        residuals: what was added to its trunk. Calls that reuse it add the outermost of them: a ControlNet's own call
            costs a third of a full one, and its deep part is in the features already.
        rows: of the call.
        features: the deep layers' output, [rows, channels, height, width].
    """

    residuals: Any
    rows: Rows
    features: Tensor | None = None

    def put(self, features: Tensor) -> None:
        """See :meth:`~consistory_ray.consistory.method.backbone.Network.finish`."""
        self.features = features


def shallow_prediction(
    network: Network, sample: Tensor, timestep: Tensor, conditioning: Conditioning, deep: Deep
) -> Tensor:
    """The prediction of a call that reuses deep features, [rows, channels, height, width]."""
    assert deep.features is not None
    features, residuals = deep.features, deep.residuals
    if conditioning.rows.halves < deep.rows.halves:  # guidance ended in between
        features = conditioning.rows.conditional(features)
        residuals = None if residuals is None else network.conditional_residuals(residuals, conditioning.rows.images)
    return network.shallow(sample, timestep, conditioning, features, residuals)
