"""PredictedWeightStats: the scale of the predicted weights against gamma (paper, Figure 1a)."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, writes_files
from mip_lightning.callbacks.base import HyperCallback, hyper_module
from mip_lightning.diagnostics.weights import (
    ALL,
    GRID,
    WeightStatistics,
    along_axis,
    plot_weight_statistics,
    proportionality,
    weight_statistics,
)
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import Value


class PredictedWeightStats(HyperCallback):
    """Records std, mean and norm of theta against gamma, in all and for each predicted tensor.

    At the start, every N epochs or steps, and at the end of training; over the prior's grid, and
    where gamma has several dimensions at the start and the end along each dimension too, with the
    others at their medians. Writes ``predicted_weight_stats.csv`` (a row for each step, tensor and
    gamma) and the figure ``predicted_weight_stats.png`` to the run's folder, the figure also to
    TensorBoard, and logs ``proportionality/slope`` and ``proportionality/r2``.

    Args:
        every_n_epochs: Record at the end of each N-th epoch; 0 for none.
        grid_size: Number of gamma on the grid.
        every_n_steps: Record at each N-th optimizer step too; 0 for none.

    Raises:
        UsageError: If a value is out of range, or the module is not a HyperLightningModule.

    Example::

        trainer:
          callbacks:
            - class_path: PredictedWeightStats
              init_args: {every_n_epochs: 5}
    """

    def __init__(
        self, every_n_epochs: int = 1, grid_size: int = 11, every_n_steps: int = 0
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value < 0:
                raise UsageError(f"{name}={value}: give 1 or more, or 0 for none")
        if grid_size < 2:
            raise UsageError(f"grid_size={grid_size}: a line needs at least 2 values of gamma")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.grid_size = grid_size
        super().__init__()
        self._lines: dict[str, Tensor] = {}
        self._table: StepTable | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not writes_files(trainer):
            return
        prior = hyper_module(pl_module).model.prior
        self._lines = {GRID: prior.grid(self.grid_size)}
        if prior.dim > 1:
            for dimension, name in enumerate(prior.names):
                self._lines[name] = along_axis(prior, dimension, self.grid_size)
        self._table = self.table(
            trainer,
            "predicted_weight_stats.csv",
            ["step", "epoch", "line", "tensor", *prior.names, *WeightStatistics._fields],
        )
        self._record(trainer, pl_module, trainer.current_epoch, list(self._lines))
        self._plot(trainer, pl_module)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._record(trainer, pl_module, trainer.current_epoch, [GRID])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._record(trainer, pl_module, trainer.current_epoch + 1, [GRID])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._table:
            return
        self._record(trainer, pl_module, trainer.current_epoch, list(self._lines))
        self._plot(trainer, pl_module)
        rank_zero_info(f"Scale of the predicted weights: {self._table.path.with_suffix('.png')}")

    def _record(
        self, trainer: Trainer, pl_module: LightningModule, epoch: int, lines: Sequence[str]
    ) -> None:
        """Add what is not there yet of this step."""
        if self._table is None:
            return
        model, step = hyper_module(pl_module).model, trainer.global_step
        there = {row["line"] for row in self._table.rows if int(row["step"]) == step}
        for line in lines:
            if line in there:
                continue
            grid = self._lines[line]
            statistics = weight_statistics(model, grid)
            place: dict[str, Value] = {"step": step, "epoch": epoch, "line": line}
            self._table.append(
                {
                    **place,
                    "tensor": tensor,
                    **dict(zip(model.prior.names, gamma.tolist(), strict=True)),
                    **{name: float(values[k]) for name, values in of_tensor._asdict().items()},
                }
                for tensor, of_tensor in statistics.items()
                for k, gamma in enumerate(grid)
            )
            if line == GRID:
                fit = proportionality(grid.norm(dim=1), statistics[ALL].std)
                for logger in trainer.loggers:
                    logger.log_metrics(
                        {"proportionality/slope": fit.slope, "proportionality/r2": fit.r2}, step
                    )

    def _plot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._table is not None
        model = hyper_module(pl_module).model
        figure = plot_weight_statistics(self._table.rows, self._lines, model.prior.names)
        figure.suptitle(
            f"Scale of the predicted weights of {type(model.primary).__name__},"
            f" formulation: {model.formulation}"
        )
        self.publish(trainer, figure, self._table.path.with_suffix(".png"))
