"""Normalization in the primary networks, by choice: none, batch, layer or group normalization."""

import math
from typing import Literal, TypeAlias, get_args

from torch import nn

from mip_lightning.errors import UsageError

SpatialDims: TypeAlias = Literal[2, 3]

Normalization: TypeAlias = Literal["none", "batch", "layer", "group"]

NUM_GROUPS = 8
"""Groups of features that are normalized together, as far as they divide the features."""


def normalization_layers(
    normalization: Normalization, features: int, spatial_dims: SpatialDims = 2
) -> list[nn.Module]:
    """What stands between a convolution and its activation.

    Layer normalization of an image is over all its features and pixels, with a scale and a shift
    for each feature: group normalization with one group.

    Args:
        normalization: ``none``, ``batch``, ``layer`` or ``group``.
        features: Number of features.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        UsageError: If the normalization is unknown.
    """
    match normalization:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(features) if spatial_dims == 2 else nn.BatchNorm3d(features)]
        case "layer":
            return [nn.GroupNorm(1, features)]
        case "group":
            return [nn.GroupNorm(math.gcd(NUM_GROUPS, features), features)]
        case _:
            raise UsageError(
                f"normalization={normalization!r}: choose one of"
                f" {', '.join(get_args(Normalization))}"
            )
