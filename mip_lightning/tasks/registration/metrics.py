"""What registration is measured by, each of a displacement and the pair that it belongs to.

All are over each fixed image's own voxels, without padding (``tasks/_volumes.py``).
"""

from abc import abstractmethod
from typing import NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.functional.spatial_transform import warp
from mip_lightning.tasks._dice import LabelDice
from mip_lightning.tasks._volumes import clear_padding, own_voxels
from mip_lightning.tasks.registration.deformation import jacobian_determinant, spatial_gradient


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
        size: Size of the fixed image, in the middle of S, shape ``(B, D)``, for metrics and files;
            by default S.
        moving_size: Size of the moving image, in the middle of S, shape ``(B, D)``, for files; by
            default that of the fixed one.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: NotRequired[Tensor]
    fixed_labels: NotRequired[Tensor]
    moving_name: NotRequired[list[str]]
    fixed_name: NotRequired[list[str]]
    affine: NotRequired[Tensor | np.ndarray]
    size: NotRequired[Tensor]
    moving_size: NotRequired[Tensor]


class MeanDice(LabelDice):
    """Dice of the moving labels, warped by nearest neighbor, and the fixed labels.

    Source: paper, Section A.3, "Evaluation".
    """

    @override
    def update(self, displacement: Float[Tensor, "B D *S"], pair: Pair) -> None:  # type: ignore[override]  # of what registration predicts
        """Add a batch.

        Raises:
            UsageError: If the pair has no labels, or ``size`` is not that of images in the middle.
        """
        if "moving_labels" not in pair or "fixed_labels" not in pair:
            raise UsageError(
                "a pair without moving_labels and fixed_labels: evaluation needs them for Dice"
            )
        moving = pair["moving_labels"].to(displacement.dtype)
        found = warp(moving, displacement, "nearest")
        expected = pair["fixed_labels"].to(displacement.dtype)
        self.add(clear_padding(found, pair), clear_padding(expected, pair))


class DiceBefore(MeanDice):
    """Dice of the labels before registration: of a displacement by nothing, whatever gamma is."""

    @override
    def update(self, batch: Pair, primaries: object) -> None:  # type: ignore[override]  # an extra metric
        moving = batch["moving"]
        shape = (len(moving), moving.ndim - 2, *moving.shape[2:])
        super().update(torch.zeros(shape, device=moving.device, dtype=torch.float32), batch)


class _MeanOverVoxels(Metric):
    """Mean of something over each sample's own voxels, then over samples."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def measure(self, displacement: Float[Tensor, "B D *S"]) -> Float[Tensor, "B *S"]:
        """What is averaged."""

    @override
    def update(self, displacement: Float[Tensor, "B D *S"], pair: Pair) -> None:
        """Add a batch.

        Raises:
            UsageError: If ``size`` is not that of images in the middle.
        """
        # Crop first: a difference across the border of the image would contain the padding.
        for own in own_voxels(displacement, pair):
            self.total += self.measure(own).mean() * len(own)
        self.count += len(displacement)

    @override
    def compute(self) -> Float[Tensor, ""]:
        return self.total / self.count


class FoldedShare(_MeanOverVoxels):
    """Share of voxels at which the displacement folds: Jacobian determinant at most 0."""

    higher_is_better = False

    @override
    def measure(self, displacement: Float[Tensor, "B D *S"]) -> Float[Tensor, "B *S"]:
        return (jacobian_determinant(displacement) <= 0.0).to(displacement.dtype)


class GradientMagnitude(_MeanOverVoxels):
    """Mean Frobenius norm of the displacement's gradient, 0 for a shift."""

    @override
    def measure(self, displacement: Float[Tensor, "B D *S"]) -> Float[Tensor, "B *S"]:
        return spatial_gradient(displacement).square().sum(dim=(1, 2)).sqrt()
