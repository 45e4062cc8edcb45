"""GradientStats: how large gradients are, and how much they vary (paper, Figure 3c)."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, writes_files
from mip_lightning.callbacks._records import MinibatchRecords
from mip_lightning.callbacks.base import HyperCallback, hyper_module, latest_batch
from mip_lightning.diagnostics.gradients import (
    PARTS,
    STATISTICS,
    GradientNorms,
    plot_gradient_statistics,
    statistics,
)
from mip_lightning.errors import UsageError


class GradientStats(HyperCallback):
    """Records the norm of each minibatch's gradient, and statistics over each epoch's minibatches.

    Gradients are taken with respect to the predicted weights theta, to theta0, and to the trunk and
    the head of the hypernetwork; without the scaling of gradient accumulation and of mixed
    precision. Writes ``gradient_norms.csv`` (a row for each recorded minibatch of each rank, with
    the gamma it drew), ``gradient_stats.csv`` (mean, standard deviation, their ratio, extremes and
    quantiles of each epoch, over the minibatches of all ranks), and the figure
    ``gradient_stats.png``; logs ``gradient_norm/theta`` and the others.

    Args:
        every_n_steps: Record each N-th minibatch of an epoch.

    Raises:
        UsageError: If a value is below 1, or the module is not a HyperLightningModule.

    Example::

        trainer:
          callbacks:
            - class_path: GradientStats
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise UsageError(f"every_n_steps={every_n_steps}: give 1 or more")
        self.every_n_steps = every_n_steps
        super().__init__()
        self._watch: GradientNorms | None = None
        self._norms: dict[str, Tensor] = {}
        self._records = MinibatchRecords(())
        self._minibatches: StepTable | None = None
        self._epochs: StepTable | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gammas = hyper_module(pl_module).model.prior.names
        columns = ["step", "epoch", "batch", "rank", *gammas, *PARTS]
        self._records = MinibatchRecords(columns)
        if writes_files(trainer):
            self._minibatches = self.table(trainer, "gradient_norms.csv", columns)
            self._epochs = self.table(
                trainer,
                "gradient_stats.csv",
                ["step", "epoch", "part", *STATISTICS],
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._remove_hooks()  # the last one had no backward pass, or failed in it
        if batch_idx % self.every_n_steps == 0:
            self._watch = GradientNorms(hyper_module(pl_module).model).__enter__()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is None:
            return
        scale = _loss_scale(trainer, pl_module.device)
        self._norms = {name: norm / scale for name, norm in self._watch.norms().items()}
        self._remove_hooks()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self._norms:
            return
        gamma = latest_batch(pl_module).gamma
        place = [trainer.global_step, trainer.current_epoch, batch_idx, trainer.global_rank]
        self._records.add([*place, *gamma.mean(dim=0).unbind(), *self._norms.values()])
        if trainer.is_last_batch or _is_logged(trainer):
            for name, norm in self._norms.items():
                pl_module.log(f"gradient_norm/{name}", norm, batch_size=1)
        self._norms = {}

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        columns = self._records.columns
        rows = self._records.gather(trainer)
        if self._minibatches is None or self._epochs is None or not len(rows):
            return
        order = sorted(range(len(rows)), key=lambda i: rows[i, [0, 2, 3]].tolist())
        self._minibatches.append(
            {
                name: int(value) if name in ("step", "epoch", "batch", "rank") else value
                for name, value in zip(columns, row, strict=True)
            }
            for row in rows[order].tolist()
        )
        self._epochs.append(
            {
                "step": trainer.global_step,
                "epoch": trainer.current_epoch + 1,
                "part": part,
                **statistics(rows[:, columns.index(part)]),
            }
            for part in PARTS
        )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epochs is None or self._minibatches is None or not self._epochs.rows:
            return
        model = hyper_module(pl_module).model
        figure = plot_gradient_statistics(
            self._epochs.rows, self._minibatches.rows, model.prior.names
        )
        figure.suptitle(
            f"Gradients of {type(model.primary).__name__}, formulation: {model.formulation}"
        )
        path = self._epochs.path.with_suffix(".png")
        self.publish(trainer, figure, path)
        rank_zero_info(f"Gradients: {path}")


def _is_logged(trainer: Trainer) -> bool:
    """Whether Lightning hands what is logged at this step to loggers; to log it costs time."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a part of it
    return every > 0 and trainer.global_step % every == 0


def _loss_scale(trainer: Trainer, device: torch.device) -> Tensor:
    """What Lightning has multiplied the loss by: mixed precision's scale over the accumulation."""
    scale = torch.ones((), device=device)
    plugin = trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        scale = plugin.scaler.scale(scale)  # unlike get_scale, it does not wait for the device
    return scale / trainer.accumulate_grad_batches
