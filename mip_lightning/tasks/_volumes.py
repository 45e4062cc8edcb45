"""Where an image stands in the padded volume that a network was given.

Data modules put a smaller image in the middle of zeros, and a batch then has ``size``, the size of
each image along each axis, shape ``(B, D)``. What is measured or written is an image's own voxels;
where a batch has no ``size``, all voxels are.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from mip_lightning.errors import UsageError


def in_the_middle(padded: Sequence[int], size: Integer[Tensor, " D"] | None) -> tuple[slice, ...]:
    """The box of an image in the middle of zeros, as the data modules pad it.

    Waits for the device that the size is on.

    Args:
        padded: Size of the padded image.
        size: Size of the image; ``None`` for all of it.

    Raises:
        UsageError: If the image does not fit into the padded one.
    """
    if size is None:
        return tuple(slice(0, length) for length in padded)
    own = size.tolist()
    if len(own) != len(padded) or not all(1 <= n <= p for p, n in zip(padded, own, strict=True)):
        raise UsageError(
            f"size={own}: an image of this size does not fit into the"
            f" {' x '.join(map(str, padded))} voxels of its batch; give its own length along each"
            " axis, in their order"
        )
    starts = [(length - n) // 2 for length, n in zip(padded, own, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, own, strict=True))


def own_voxels(values: Shaped[Tensor, "B C *S"], batch: Mapping[str, object]) -> list[Tensor]:
    """Each sample without its padding, as a batch of one.

    Waits for the device that the sizes are on: for evaluation, not for a training step.

    Args:
        values: A value for each voxel of a batch.
        batch: The batch. If it has no ``size``, the result is one batch, the values as they are.

    Raises:
        UsageError: If ``size`` is not that of images in the middle of S.
    """
    sizes = _sizes(values, batch)
    if sizes is None:
        return [values]
    boxes = [in_the_middle(values.shape[2:], size) for size in sizes.cpu()]
    return [sample[..., *box] for sample, box in zip(values.split(1), boxes, strict=True)]


def clear_padding(values: Shaped[Tensor, "B C *S"], batch: Mapping[str, object]) -> Tensor:
    """The values with zeros, the background of labels, outside each sample's own voxels.

    Args:
        values: A value for each voxel of a batch.
        batch: The batch. If it has no ``size``, the result is the values themselves.

    Raises:
        UsageError: If ``size`` is not that of images in the middle of S. On a GPU a wrong value is
            seen in evaluation only.
    """
    sizes = _sizes(values, batch)
    if sizes is None:
        return values
    padded = values.shape[2:]
    # On a GPU reading the values waits for the device, which a training step must not do.
    if sizes.device.type == "cpu" or not torch.is_grad_enabled():
        for size in sizes.cpu():
            in_the_middle(padded, size)
    inside = torch.ones_like(values[:, :1], dtype=torch.bool)
    for axis, (length, own) in enumerate(zip(padded, sizes.unbind(dim=1), strict=True), start=2):
        start = ((length - own) // 2).unsqueeze(1)
        voxels = torch.arange(length, device=sizes.device)
        along = (voxels >= start) & (voxels < start + own.unsqueeze(1))
        shape = [length if a == axis else 1 for a in range(2, values.ndim)]
        inside = inside & along.view(-1, 1, *shape)
    return values.masked_fill(~inside, 0)


def _sizes(values: Tensor, batch: Mapping[str, object]) -> Integer[Tensor, "B D"] | None:
    """The sizes of a batch's images, if it has them."""
    sizes = batch.get("size")
    if sizes is None:
        return None
    shape = (len(values), values.ndim - 2)
    if not isinstance(sizes, Tensor) or sizes.shape != shape or sizes.is_floating_point():
        found = (
            f"{sizes.dtype} of shape {tuple(sizes.shape)}"
            if isinstance(sizes, Tensor)
            else type(sizes).__name__
        )
        raise UsageError(
            f"size of a batch: {found}, and images of {' x '.join(map(str, values.shape[2:]))}"
            f" voxels; give integers of shape {shape}, each image's own length along each axis, or"
            " no size"
        )
    return sizes.long()  # smaller integers may not hold S
