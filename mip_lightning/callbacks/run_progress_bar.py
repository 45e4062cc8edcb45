"""RunProgressBar: loss, monitored metric and gamma while training goes on."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

REFRESH_RATE = 10
"""Batches between two refreshes; each waits for the device to learn the loss."""


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar without the loggers' version numbers."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=REFRESH_RATE)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
