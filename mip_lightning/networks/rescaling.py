"""Bilinear rescaling of images and volumes by any factor, in place of pooling by two."""

import math
from collections.abc import Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mip_lightning.errors import UsageError

ROUNDING = 1e-4
"""What a size may lack of a whole number of pixels.

In 32 bits 0.35 is a little less, and would leave 13 of 40 pixels. This makes up for it in sizes of
up to 3,000."""

Factor: TypeAlias = float | Tensor
"""gamma, by which each layer shrinks: in [0, 1]; 0.5 halves."""


def as_factor(gamma: Factor) -> float:
    """Gamma as a number, which sizes are computed from; one on a GPU is waited for.

    Raises:
        UsageError: If it is not one number in [0, 1].
    """
    if isinstance(gamma, Tensor) and gamma.numel() != 1:
        raise UsageError(
            f"gamma holds {gamma.numel()} numbers: a network has one factor of rescaling"
        )
    factor = float(gamma)
    if not 0.0 <= factor <= 1.0:
        raise UsageError(f"gamma={factor:g}: give a factor of rescaling in [0, 1]; 0.5 halves")
    return factor


def rescaled_size(size: Sequence[int], factor: float) -> list[int]:
    """The size that is left, rounded down, of one pixel at least.

    So a factor below ``1 / size``, zero too, leaves one pixel. A factor of two or three decimals
    gives the size that it would give in exact arithmetic.

    Args:
        size: Number of pixels along each axis.
        factor: The factor, in [0, 1].
    """
    return [max(1, math.floor(length * factor + ROUNDING)) for length in size]


def resized(images: Float[Tensor, "B C *S"], size: Sequence[int]) -> Float[Tensor, "B C *T"]:
    """Interpolate linearly, so that the corners of the outermost pixels stay where they are.

    Source: paper, Section A.4, "fractional bilinear sampling"; ``align_corners=False`` of PyTorch,
    without a filter against aliasing.

    Args:
        images: Images or volumes.
        size: Size T of the result.
    """
    return F.interpolate(
        images,
        size=list(size),
        mode="bilinear" if images.ndim == 4 else "trilinear",
        align_corners=False,
    )


def rescaled(images: Float[Tensor, "B C *S"], factor: float) -> Float[Tensor, "B C *T"]:
    """Shrink by a factor; half of an even size is ordinary bilinear downsampling by two.

    Args:
        images: Images or volumes.
        factor: The factor, in [0, 1].
    """
    return resized(images, rescaled_size(images.shape[2:], factor))
