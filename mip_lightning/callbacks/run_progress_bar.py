"""RunProgressBar: loss, gamma and the monitored metric while training goes on."""

import math

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.core.module import HyperLightningModule

REFRESH_RATE = 10
"""Batches between two looks at the values; each look waits for the device."""


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar with the latest training batch next to the validation metrics.

    It leaves out the loggers' version numbers, and asks for values every tenth batch only.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=REFRESH_RATE)
        self._batches = 0
        self._progress: dict[str, float] = {}

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.training and isinstance(pl_module, HyperLightningModule):
            if self._batches % REFRESH_RATE == 0 or trainer.is_last_batch:
                self._progress = _progress(pl_module)
            self._batches += 1
        return {**self._progress, **metrics}


def _progress(module: HyperLightningModule) -> dict[str, float]:
    """Loss, gamma and the monitored metric of the latest training batch, on this rank.

    Waits for the device. Only rank 0 has a bar, so nothing here may wait for other ranks.
    """
    if module.latest is None:
        return {}
    gamma, output = module.latest
    gammas = module.model.prior.means(gamma)
    report = {name: float(value) for name, value in gammas.items()}
    report["train_loss"] = float(output.loss)
    metric = module.configure_metrics().get(module.monitored_metric)
    if metric is not None and output.prediction is not None:
        metric = _on_this_rank(metric.to(module.device))
        metric.update(output.prediction, output.target)
        value = math.nan if output.has_nan() else float(metric.compute())
        report[f"train_{module.monitored_metric}"] = value
    return report


def _on_this_rank(metric: Metric) -> Metric:
    """Let a metric, and those within it, compute from this rank's states.

    ``sync_on_compute`` does not do it: it is read in a metric's constructor only.
    """
    for part in metric.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = lambda: False
    return metric
