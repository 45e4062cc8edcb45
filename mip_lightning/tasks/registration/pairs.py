"""Pairs of images: as a batch has them, and without the padding that its sizes tell."""

from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from mip_lightning.tasks._volumes import Box, own_boxes


class Pair(TypedDict):
    """A batch of registration, as ``ImagePairs`` gives it.

    Attributes:
        moving: The images that are warped, shape ``(B, 1, *S)``.
        fixed: The images to which they are brought, shape ``(B, 1, *S)``.
        moving_labels: Integer labels of the moving images, shape ``(B, 1, *S)``, for evaluation.
        fixed_labels: Integer labels of the fixed images, shape ``(B, 1, *S)``, for evaluation.
        moving_name: Name of each moving image, for files.
        fixed_name: Name of each fixed image, for files.
        affine: From the fixed image's voxels to millimeters, shape ``(B, 4, 4)``, for files.
        moving_affine: The same of the moving image; by default that of the fixed one.
        size: Size of the fixed image, in the middle of S, shape ``(B, D)``; by default S.
        moving_size: Size of the moving image, in the middle of S, shape ``(B, D)``; by default
            that of the fixed one.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: NotRequired[Tensor]
    fixed_labels: NotRequired[Tensor]
    moving_name: NotRequired[list[str]]
    fixed_name: NotRequired[list[str]]
    affine: NotRequired[Tensor | np.ndarray]
    moving_affine: NotRequired[Tensor | np.ndarray]
    size: NotRequired[Tensor | np.ndarray]
    moving_size: NotRequired[Tensor | np.ndarray]


class OwnPairs(NamedTuple):
    """Pairs of a batch without padding, alike in their sizes.

    Voxel x of a fixed image lies in the place of voxel ``x + offset`` of the moving one.

    Attributes:
        moving: The moving images.
        fixed: The fixed images.
        flow: The network's flow at the fixed images' voxels.
        moving_flow: The network's flow at the moving images' voxels.
        offset: Where a fixed image begins in its moving one, in voxels.
        moving_labels: Labels of the moving images, if the batch has them.
        fixed_labels: Labels of the fixed images, if the batch has them.
    """

    moving: Float[Tensor, "b 1 *M"]
    fixed: Float[Tensor, "b 1 *F"]
    flow: Float[Tensor, "b D *F"]
    moving_flow: Float[Tensor, "b D *M"]
    offset: tuple[int, ...]
    moving_labels: Shaped[Tensor, "b 1 *M"] | None
    fixed_labels: Shaped[Tensor, "b 1 *F"] | None


def own_pairs(batch: Pair, flow: Float[Tensor, "B D *S"]) -> list[OwnPairs]:
    """The pairs of a batch without padding: all in one where there is none, else each alone.

    Args:
        batch: The batch.
        flow: What the network gives for it, which sets the type of the images too.

    Raises:
        UsageError: If ``size`` or ``moving_size`` is not that of images in the middle of S.
    """
    fixed_boxes = own_boxes(flow, batch)
    moving_boxes = own_boxes(flow, batch, "moving_size") if "moving_size" in batch else fixed_boxes
    whole: Box = tuple(slice(0, length) for length in flow.shape[2:])
    if fixed_boxes is None and moving_boxes is None:
        return [_of(batch, flow, slice(None), whole, whole)]
    count = len(flow)
    return [
        _of(batch, flow, slice(index, index + 1), fixed, moving)
        for index, (fixed, moving) in enumerate(
            zip(fixed_boxes or [whole] * count, moving_boxes or [whole] * count, strict=True)
        )
    ]


def _of(batch: Pair, flow: Tensor, which: slice, fixed: Box, moving: Box) -> OwnPairs:
    moving_labels, fixed_labels = batch.get("moving_labels"), batch.get("fixed_labels")
    return OwnPairs(
        moving=batch["moving"][which, :, *moving].to(flow.dtype),
        fixed=batch["fixed"][which, :, *fixed].to(flow.dtype),
        flow=flow[which, :, *fixed],
        moving_flow=flow[which, :, *moving],
        offset=tuple(f.start - m.start for f, m in zip(fixed, moving, strict=True)),
        moving_labels=None if moving_labels is None else moving_labels[which, :, *moving],
        fixed_labels=None if fixed_labels is None else fixed_labels[which, :, *fixed],
    )
