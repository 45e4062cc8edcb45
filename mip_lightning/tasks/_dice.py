"""Dice of label maps: of each label, and their mean."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from typing_extensions import override

from mip_lightning.core.metrics import LabelledMetric
from mip_lightning.utilities.precision import float32_by_default

NUM_LABELS = 256
"""Labels are bytes."""


def dice_by_label(
    found: Float[Tensor, "B 1 *S"], expected: Float[Tensor, "B 1 *S"], num_labels: int
) -> Float[Tensor, "B L"]:
    """Dice of each label but the background, by MONAI; NaN where a label is in neither map.

    A label that is in one map only has Dice 0.

    Args:
        found: Labels of the warped images, or those that were predicted.
        expected: Labels of the fixed images, or the true ones.
        num_labels: Number of labels with the background, L + 1.
    """
    from monai.metrics import compute_dice  # heavy: each command would wait for it

    with float32_by_default():
        dice: Tensor = compute_dice(
            found,
            expected,
            include_background=False,
            ignore_empty=False,
            num_classes=num_labels,
        )
    there = torch.zeros(len(found), num_labels, dtype=torch.bool, device=found.device)
    for labels in (found, expected):
        there.scatter_(1, labels.long().flatten(1), True)
    return dice.masked_fill(~there[:, 1:], torch.nan)


class LabelDice(LabelledMetric):
    """Mean Dice of label maps.

    Averaged over the labels of a sample that are in at least one of its two maps, without the
    background, then over samples. A sample with none in either map, both masks empty, is left
    out; where one of them is empty Dice is 0.

    Source: Dice, "Measures of the amount of ecologic association between species", 1945.
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

    @override
    def update(self, found: Integer[Tensor, "B 1 *S"], expected: Integer[Tensor, "B 1 *S"]) -> None:
        """Add a batch.

        Args:
            found: The labels that were predicted.
            expected: The true ones.
        """
        self.add(found.float(), expected.float())

    def add(self, found: Float[Tensor, "B 1 *S"], expected: Float[Tensor, "B 1 *S"]) -> None:
        """Add a batch of label maps that hold whole numbers."""
        num_labels = int(torch.stack([found.amax(), expected.amax(), found.new_tensor(1.0)]).max())
        dice = dice_by_label(found, expected, num_labels + 1)
        there = ~dice.isnan()
        has_labels = there.any(dim=1)
        self.total += dice.nanmean(dim=1)[has_labels].sum()
        self.count += has_labels.sum()
        self.label_total[1 : num_labels + 1] += dice.nansum(dim=0)
        self.label_count[1 : num_labels + 1] += there.sum(dim=0)

    @override
    def compute(self) -> Float[Tensor, ""]:
        return self.total / self.count

    @override
    def compute_by_label(self) -> Mapping[int, Float[Tensor, ""]]:
        mean = self.label_total / self.label_count
        return {int(label): mean[label] for label in self.label_count.nonzero().flatten()}
