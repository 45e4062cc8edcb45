"""Where an image stands in the padded volume that a network was given.

Data modules put a smaller image in the middle of zeros, and a batch then has ``size``, the size of
each image along each axis, shape ``(B, D)``. What is trained on, measured or written is an image's
own voxels; where a batch has no ``size``, all voxels are.

``size`` is best an array of NumPy, which Lightning leaves on the CPU: reading a tensor waits for
the device that it is on, in each training step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.utilities.padding import centered

Box = tuple[slice, ...]


def own_boxes(
    values: Shaped[Tensor, "B C *S"], batch: Mapping[str, Any], key: str = "size"
) -> list[Box] | None:
    """Where each sample's own voxels are; ``None`` where each sample fills its volume.

    Args:
        values: A value for each voxel of a batch.
        batch: The batch.
        key: Which entry of the batch has the sizes.

    Raises:
        UsageError: If it is not that of images in the middle of S.
    """
    sizes = batch.get(key)
    if sizes is None:
        return None
    padded = tuple(values.shape[2:])
    found = np.asarray(sizes.cpu() if isinstance(sizes, Tensor) else sizes)
    expected = (len(values), len(padded))
    if found.shape != expected or found.dtype.kind not in "iu":
        raise UsageError(
            f"{key} of a batch: {found.dtype} of shape {found.shape}, and images of"
            f" {' x '.join(map(str, padded))} voxels; give integers of shape {expected}, each"
            f" image's own length along each axis, or no {key}"
        )
    for own in found.tolist():
        if not all(1 <= n <= p for p, n in zip(padded, own, strict=True)):
            raise UsageError(
                f"{key}={own}: an image of this size does not fit into the"
                f" {' x '.join(map(str, padded))} voxels of its batch; give its own length along"
                " each axis, in their order"
            )
    if (found == padded).all():
        return None
    return [centered(padded, own) for own in found.tolist()]


def clear_padding(values: Shaped[Tensor, "B C *S"], batch: Mapping[str, Any]) -> Tensor:
    """The values with zeros, the background of labels, outside each sample's own voxels.

    Args:
        values: A value for each voxel of a batch.
        batch: The batch. If it has no ``size``, the result is the values themselves.

    Raises:
        UsageError: If ``size`` is not that of images in the middle of S.
    """
    boxes = own_boxes(values, batch)
    if boxes is None:
        return values
    cleared = values.new_zeros(values.shape)
    for into, sample, box in zip(cleared, values, boxes, strict=True):
        into[:, *box] = sample[:, *box]
    return cleared
