"""Warping: images by displacements, and velocities integrated to displacements.

A displacement ``u`` maps a voxel ``x`` of the warped image to ``x + u(x)`` in the image it is taken
from. Its channels are the axes of the image in their order, its unit is the voxel.

The results are those of MONAI's ``Warp`` and ``DVF2DDF`` to the last bit. These make the grid of
voxels on the CPU at each call, for which a training step on a GPU would wait eight times.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def warp(
    images: Float[Tensor, "B C *M"],
    displacement: Float[Tensor, "B D *S"],
    mode: Literal["bilinear", "nearest"] = "bilinear",
    offset: Sequence[int] = (),
) -> Float[Tensor, "B C *S"]:
    """Sample images at each voxel plus its displacement, at the border beyond it.

    Args:
        images: What is sampled.
        displacement: Where, in voxels.
        mode: ``bilinear`` (in 3D trilinear) for images, ``nearest`` for labels.
        offset: The voxel of the images in whose place the displacement's first one lies; by default
            their first one, too.
    """
    size = displacement.shape[2:]
    starts = offset or [0] * len(size)
    coordinates: list[Tensor] = []
    for axis, (length, component) in enumerate(
        zip(images.shape[2:], displacement.unbind(dim=1), strict=True)
    ):
        first, last = starts[axis], starts[axis] + size[axis]
        voxels = torch.arange(first, last, device=component.device, dtype=component.dtype)
        along = voxels.view([-1 if a == axis else 1 for a in range(len(size))])
        # grid_sample counts from -1 at the first voxel to 1 at the last one, the last axis first.
        coordinates.insert(0, (along + component) * 2 / max(length - 1, 1) - 1)
    grid = torch.stack(coordinates, dim=-1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=True)


def integrate(velocity: Float[Tensor, "B D *S"], num_steps: int = 7) -> Float[Tensor, "B D *S"]:
    """Integrate a stationary velocity over unit time by scaling and squaring.

    Source: Dalca et al., "Unsupervised Learning for Fast Probabilistic Diffeomorphic Registration",
    2018, Section 2.1.

    Args:
        velocity: The velocity, in voxels.
        num_steps: Number of squarings; the velocity is divided by two to this power.

    Returns:
        The displacement, in voxels.
    """
    displacement: Tensor = velocity / 2**num_steps
    for _ in range(num_steps):
        displacement = displacement + warp(displacement, displacement)
    return displacement
