"""What registration is measured by, each of a displacement and the pair that it belongs to."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Float
from monai.metrics import compute_dice
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from mip_lightning.errors import UsageError
from mip_lightning.sweep import LabelledMetric
from mip_lightning.tasks.deformation import jacobian_determinant, spatial_gradient
from mip_lightning.warping import Warping

NUM_LABELS = 256
"""Labels are bytes."""


class Pair(TypedDict):
    """A batch of registration, as ``ImagePairs`` gives it.

    Attributes:
        moving: The images that are warped, shape ``(B, 1, *S)``.
        fixed: The images to which they are brought, shape ``(B, 1, *S)``.
        moving_labels: Integer labels of the moving images, shape ``(B, 1, *S)``, for evaluation.
        fixed_labels: Integer labels of the fixed images, shape ``(B, 1, *S)``, for evaluation.
        moving_name: Name of each moving image, for files.
        fixed_name: Name of each fixed image, for files.
        affine: From the fixed image's voxels to millimetres, shape ``(B, 4, 4)``, for files.
        size: Size of the fixed image, in the middle of S, shape ``(B, D)``, for files.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: NotRequired[Tensor]
    fixed_labels: NotRequired[Tensor]
    moving_name: NotRequired[list[str]]
    fixed_name: NotRequired[list[str]]
    affine: NotRequired[Tensor]
    size: NotRequired[Tensor]


def dice_by_label(
    warped: Float[Tensor, "B 1 *S"], fixed: Float[Tensor, "B 1 *S"], num_labels: int
) -> Float[Tensor, "B L"]:
    """Dice of each label but the background, by MONAI; NaN where a label is in neither image.

    A label that is in one image only has Dice 0.

    Args:
        warped: Labels of the warped images.
        fixed: Labels of the fixed images.
        num_labels: Number of labels with the background, L + 1.
    """
    dice: Tensor = compute_dice(
        warped,
        fixed,
        include_background=False,
        ignore_empty=False,
        num_classes=num_labels,
    )
    there = [
        functional.one_hot(labels.long().flatten(1), num_labels).any(dim=1)[:, 1:]
        for labels in (warped, fixed)
    ]
    return dice.masked_fill(~(there[0] | there[1]), torch.nan)


class MeanDice(LabelledMetric):
    """Dice of the moving labels, warped by nearest neighbour, and the fixed labels.

    Averaged over the labels of a pair that are in at least one of its two images, then over pairs.

    Source: paper, Section A.3, "Evaluation"; Dice, "Measures of the amount of ecologic
    association between species", 1945.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor
    label_total: Tensor
    label_count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("label_total", torch.zeros(NUM_LABELS), dist_reduce_fx="sum")
        self.add_state(
            "label_count", torch.zeros(NUM_LABELS, dtype=torch.long), dist_reduce_fx="sum"
        )
        self.warping = Warping("nearest")

    def update(self, displacement: Float[Tensor, "B D *S"], pair: Pair) -> None:
        """Add a batch.

        Raises:
            UsageError: If the pair has no labels.
        """
        if "moving_labels" not in pair or "fixed_labels" not in pair:
            raise UsageError(
                "a pair without moving_labels and fixed_labels: evaluation needs them for Dice"
            )
        fixed = pair["fixed_labels"].to(displacement.dtype)
        warped = self.warping(pair["moving_labels"].to(displacement.dtype), displacement)
        num_labels = int(torch.stack([warped.amax(), fixed.amax(), fixed.new_tensor(1.0)]).max())
        dice = dice_by_label(warped, fixed, num_labels + 1)
        there = ~dice.isnan()
        has_labels = there.any(dim=1)
        self.total += dice.nanmean(dim=1)[has_labels].sum()
        self.count += has_labels.sum()
        self.label_total[1 : num_labels + 1] += dice.nansum(dim=0)
        self.label_count[1 : num_labels + 1] += there.sum(dim=0)

    def compute(self) -> Float[Tensor, ""]:
        """The mean over pairs; NaN where no pair has a label."""
        return self.total / self.count

    def compute_by_label(self) -> Mapping[int, Float[Tensor, ""]]:
        """The mean over the pairs that have a label, for each label that any pair has."""
        mean = self.label_total / self.label_count
        return {int(label): mean[label] for label in self.label_count.nonzero().flatten()}


class _MeanOverVoxels(Metric):
    """Mean of something over voxels and samples."""

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

    def update(self, displacement: Float[Tensor, "B D *S"], pair: Pair) -> None:
        """Add a batch."""
        self.total += self.measure(displacement).mean() * len(displacement)
        self.count += len(displacement)

    def compute(self) -> Float[Tensor, ""]:
        """The mean."""
        return self.total / self.count


class FoldedShare(_MeanOverVoxels):
    """Share of voxels at which the displacement folds: Jacobian determinant at most 0."""

    higher_is_better = False

    def measure(self, displacement: Float[Tensor, "B D *S"]) -> Float[Tensor, "B *S"]:
        """1 where it folds."""
        return (jacobian_determinant(displacement) <= 0.0).to(displacement.dtype)


class GradientMagnitude(_MeanOverVoxels):
    """Mean Frobenius norm of the displacement's gradient, 0 for a shift."""

    def measure(self, displacement: Float[Tensor, "B D *S"]) -> Float[Tensor, "B *S"]:
        """The norm at each voxel."""
        return spatial_gradient(displacement).square().sum(dim=(1, 2)).sqrt()
