"""What registration is measured by, each of a displacement and the pair that it belongs to.

All take lists, as ``own_pairs`` gives them: each fixed image's own voxels, without padding.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.functional.spatial_transform import warp
from mip_lightning.tasks._dice import LabelDice
from mip_lightning.tasks.registration.deformation import jacobian_determinant, spatial_gradient
from mip_lightning.tasks.registration.pairs import OwnPairs, Pair, own_pairs


class MeanDice(LabelDice):
    """Dice of the moving labels, warped by nearest neighbor, and the fixed labels.

    Source: paper, Section A.3, "Evaluation".
    """

    @override
    def update(self, displacements: Sequence[Tensor], pairs: Sequence[OwnPairs]) -> None:  # type: ignore[override]  # of what registration predicts
        """Add a batch.

        Args:
            displacements: Of the pairs, in voxels.
            pairs: The pairs.

        Raises:
            UsageError: If they have no labels.
        """
        for displacement, pair in zip(displacements, pairs, strict=True):
            if pair.moving_labels is None or pair.fixed_labels is None:
                raise UsageError(
                    "a pair without moving_labels and fixed_labels: evaluation needs them for Dice"
                )
            moving, expected = (
                labels.to(displacement.dtype) for labels in (pair.moving_labels, pair.fixed_labels)
            )
            self.add(warp(moving, displacement, "nearest", pair.offset), expected)


class DiceBefore(MeanDice):
    """Dice of the labels before registration: of a displacement by nothing, whatever gamma is."""

    @override
    def update(self, batch: Pair, primaries: object) -> None:  # type: ignore[override]  # an extra metric
        moving = batch["moving"]
        shape = (len(moving), moving.ndim - 2, *moving.shape[2:])
        nothing = torch.zeros(shape, device=moving.device, dtype=torch.float32)
        pairs = own_pairs(batch, nothing)
        super().update([pair.flow for pair in pairs], pairs)


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
    def update(self, displacements: Sequence[Tensor], pairs: Sequence[OwnPairs]) -> None:
        """Add a batch.

        Args:
            displacements: Of the pairs, in voxels.
            pairs: The pairs.
        """
        for displacement in displacements:
            self.total += self.measure(displacement).mean() * len(displacement)
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
