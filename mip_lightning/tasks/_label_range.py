"""Labels that are not a class of the primary network are refused by name."""

from torch import Tensor

from mip_lightning.errors import UsageError


class LabelRange:
    """Checks that labels are classes of the primary.

    Those of every batch on the CPU. On a GPU, where a look at them would make each step wait, those
    of the first batch; a later label beyond the classes ends the process with CUDA's own message.
    """

    def __init__(self) -> None:
        self._looked = False

    def check(self, labels: Tensor, num_classes: int) -> None:
        """Check that labels are classes.

        Args:
            labels: Integer labels of a batch.
            num_classes: Number of classes that the primary tells apart.

        Raises:
            UsageError: If the batch has one.
        """
        if not labels.numel() or (self._looked and labels.device.type != "cpu"):
            return
        self._looked = True
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise UsageError(
                f"the labels of a batch reach from {low} to {high}, and the primary tells"
                f" {num_classes} classes apart, 0 to {num_classes - 1}: give it more classes, or"
                " other labels"
            )
