"""Losses of segmentation: cross-entropy first, then soft Dice.

A weighted sum of both is MONAI's ``DiceCELoss``.
"""

import math

from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from mip_lightning.errors import UsageError
from mip_lightning.utilities.precision import at_least_float32


class CrossEntropyThenSoftDice(nn.Module):
    """Cross-entropy in nats, and from some time in training on soft Dice, by MONAI.

    Soft Dice is ``1 - (2 p.y + s) / (|p|_1 + |y|_1 + s)`` of each label but the background, of
    each image, averaged; ``s = 1e-5``. A label that an image lacks costs nothing where the network
    is sure of it, and else nearly 1, next to constant: only the other labels lead training.
    Validation and test measure the loss that training has come to.

    Source: paper, Section A.4, "cross-entropy loss and then finetune using a soft-Dice loss term".

    Args:
        switch_at: Where 1 or more, the epoch before which soft Dice takes over; below 1 the share
            of all training steps; 0 for soft Dice alone.

    Raises:
        UsageError: If ``switch_at`` is below 0, or no whole number beyond 1.
    """

    def __init__(self, switch_at: float = 0.5) -> None:
        super().__init__()
        if not 0 <= switch_at < math.inf or (switch_at > 1 and switch_at != int(switch_at)):
            raise UsageError(
                f"switch_at={switch_at:g}: give an epoch, 1 or more, or a share of training in"
                " [0, 1)"
            )
        self.switch_at = switch_at
        self.switched = switch_at == 0
        from monai.losses import DiceLoss  # heavy: each command would wait for it

        self.soft_dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)

    def progress(self, epoch: int, share: float) -> None:
        """Choose the loss of the next steps.

        Args:
            epoch: Number of epochs that are done.
            share: Share of all steps that are done, in [0, 1].
        """
        done = epoch if self.switch_at >= 1 else share
        self.switched = done >= self.switch_at

    def forward(
        self, logits: Float[Tensor, "B C *S"], labels: Integer[Tensor, "B 1 *S"]
    ) -> Float[Tensor, ""]:
        """The loss.

        Args:
            logits: What the primary gives.
            labels: Labels in [0, C).
        """
        logits = at_least_float32(logits)
        if self.switched:
            loss: Tensor = self.soft_dice(logits, labels)
            return loss
        return F.cross_entropy(logits, labels[:, 0].long())
