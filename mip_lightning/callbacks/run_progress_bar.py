"""RunProgressBar: loss, gamma and the monitored metric while training goes on."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from mip_lightning.module import HyperLightningModule

REFRESH_RATE = 10
"""Batches between two looks at the values; each look waits for the device."""


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar with the latest training batch beside the validation metrics.

    It leaves out the loggers' version numbers, and asks for values every tenth batch only.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=REFRESH_RATE)
        self._batches = 0
        self._progress: dict[str, float] = {}

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.training and isinstance(pl_module, HyperLightningModule):
            if self._batches % REFRESH_RATE == 0 or trainer.is_last_batch:
                self._progress = pl_module.progress()
            self._batches += 1
        return {**self._progress, **metrics}
