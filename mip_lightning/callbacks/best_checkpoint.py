"""BestCheckpoint: the best weights by a metric, which must be a number for that."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, for which a metric that is NaN is never among the best.

    Lightning's takes the first one, whatever it is.
    """

    @override
    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        keeps_all = self.save_top_k == -1
        if current is not None and not keeps_all and bool(current.isnan()):
            return False
        return super().check_monitor_top_k(trainer, current)
