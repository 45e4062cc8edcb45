"""Warping by MONAI: images by displacements, and velocities integrated to displacements.

A displacement ``u`` maps a voxel ``x`` of the warped image to ``x + u(x)`` in the image it is taken
from. Its channels are the axes of the image in their order, its unit is the voxel.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from jaxtyping import Float
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor, nn


class Warping(nn.Module):
    """Samples an image at each voxel plus its displacement, at the border beyond it.

    Args:
        mode: ``bilinear`` (in 3D trilinear) for images, ``nearest`` for labels.
    """

    def __init__(self, mode: Literal["bilinear", "nearest"]) -> None:
        super().__init__()
        with _without_compiled_sampling():
            self._warp = Warp(mode=mode, padding_mode="border")

    def forward(
        self, images: Float[Tensor, "B C *S"], displacement: Float[Tensor, "B D *S"]
    ) -> Float[Tensor, "B C *S"]:
        """The warped images."""
        warped: Tensor = self._warp(images, displacement)
        return warped


class Integration(nn.Module):
    """Integrates a stationary velocity over unit time by scaling and squaring.

    Source: Dalca et al., "Unsupervised Learning for Fast Probabilistic Diffeomorphic Registration",
    2018, Section 2.1.

    Args:
        num_steps: Number of squarings; the velocity is divided by two to this power.
    """

    def __init__(self, num_steps: int = 7) -> None:
        super().__init__()
        with _without_compiled_sampling():
            self._integrate = DVF2DDF(num_steps, mode="bilinear", padding_mode="border")

    def forward(self, velocity: Float[Tensor, "B D *S"]) -> Float[Tensor, "B D *S"]:
        """The displacement."""
        displacement: Tensor = self._integrate(velocity)
        return displacement


@contextmanager
def _without_compiled_sampling() -> Iterator[None]:
    """MONAI warns that it lacks its own compiled sampling; PyTorch's does as well."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Using PyTorch native grid_sample")
        yield
