"""Normalization in the primary networks, by choice: none, batch or layer normalization."""

from typing import Literal, TypeAlias, get_args

from torch import nn

from mip_lightning.errors import UsageError

Normalization: TypeAlias = Literal["none", "batch", "layer"]


def normalization_layers(normalization: Normalization, features: int) -> list[nn.Module]:
    """What stands between a 2D convolution and its activation.

    Layer normalization of an image is over all its features and pixels, with a scale and a shift
    for each feature: group normalization with one group.

    Args:
        normalization: ``none``, ``batch`` or ``layer``.
        features: Number of features.

    Raises:
        UsageError: If the normalization is unknown.
    """
    match normalization:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(features)]
        case "layer":
            return [nn.GroupNorm(1, features)]
        case _:
            raise UsageError(
                f"normalization={normalization!r}: choose one of"
                f" {', '.join(get_args(Normalization))}"
            )
