"""GammaCurve: each evaluation metric against gamma."""

from collections import ChainMap
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, writes_files
from mip_lightning.callbacks.base import HyperCallback, hyper_module
from mip_lightning.core.evaluation import EvaluationResult, Stage
from mip_lightning.diagnostics.curves import (
    IS_BEST,
    cells_with_mark,
    label_rows,
    plot_curves,
    plot_labels,
)
from mip_lightning.errors import UsageError


class GammaCurve(HyperCallback):
    """Writes each metric at each gamma of the grid, after every validation and test.

    ``val_gamma_curve.csv`` has a row for each gamma and, in ``fit``, each validation;
    ``test_gamma_curve.csv`` one for each gamma. The figures ``val_gamma_curve.png`` (every N epochs
    and at the end of training) and ``test_gamma_curve.png`` go to TensorBoard too. They are in the
    run's folder. Of a metric that is known for each label, ``test_<metric>_by_label.csv`` and
    ``.png`` tell the same.

    The columns are ``step`` and ``epoch`` (in ``fit`` only), the dimensions of gamma, the metrics,
    and ``<metric>_is_best`` for each metric that has a better end, as the loss has the lower one:
    1 at the best gamma of this validation or test (the first, if several are best), 0 elsewhere.
    Where a metric is NaN at every gamma, none is best.

    Args:
        every_n_epochs: Draw the validation curves at each N-th epoch.

    Raises:
        UsageError: If ``every_n_epochs`` is below 1.
    """

    def __init__(self, every_n_epochs: int = 10) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise UsageError(f"every_n_epochs={every_n_epochs}: give 1 or more")
        self.every_n_epochs = every_n_epochs
        self._table: StepTable | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._table = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not writes_files(trainer):
            return
        self._write(trainer, _result(pl_module, "val"))
        is_fit = trainer.state.fn == TrainerFn.FITTING
        if not is_fit or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._plot_validation(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._table is not None:
            self._plot_validation(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not writes_files(trainer):
            return
        result = _result(pl_module, "test")
        path = self._write(trainer, result).with_suffix(".png")
        figure = plot_curves(result.names, result.grid, result.curves, result.references)
        figure.suptitle(r"Test metrics against the hypernetwork input $\gamma$")
        self.publish(trainer, figure, path)
        rank_zero_info(f"Test metrics against gamma: {path} (and .csv)")
        for name, curve in result.curves.items():
            if curve.by_label:
                self._write_labels(trainer, result, name)

    def _write_labels(self, trainer: Trainer, result: EvaluationResult, metric: str) -> None:
        curve = result.curves[metric]
        about = (result.label_names, result.names, result.grid, metric, curve)
        rows = label_rows(*about)
        table = self.table(trainer, f"test_{metric}_by_label.csv", list(rows[0]))
        table.append(rows)
        path = table.path.with_suffix(".png")
        self.publish(trainer, plot_labels(*about), path)
        rank_zero_info(f"{metric} of each label against gamma: {path} (and .csv)")

    def _plot_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._table is not None
        result = _result(pl_module, "val")
        figure = plot_curves(result.names, result.grid, result.curves, result.references)
        figure.suptitle(f"Validation metrics against gamma at step {trainer.global_step}")
        self.publish(trainer, figure, self._table.path.with_suffix(".png"))

    def _write(self, trainer: Trainer, result: EvaluationResult) -> Path:
        when: dict[str, int] = {}
        if trainer.state.fn == TrainerFn.FITTING:
            when = {"step": trainer.global_step, "epoch": trainer.current_epoch + 1}
        names, curves = result.names, result.curves
        if self._table is None:
            marks = [f"{n}{IS_BEST}" for n, c in curves.items() if c.higher_is_better is not None]
            self._table = self.table(
                trainer, f"{result.stage}_gamma_curve.csv", [*when, *names, *curves, *marks]
            )
        cells_of = [cells_with_mark(name, curve) for name, curve in curves.items()]
        self._table.append(
            {**when, **dict(zip(names, gamma, strict=True)), **ChainMap(*cells)}
            for gamma, cells in zip(result.grid.tolist(), zip(*cells_of, strict=True), strict=True)
        )
        return self._table.path


def _result(pl_module: LightningModule, stage: Stage) -> EvaluationResult:
    result = hyper_module(pl_module).evaluation(stage).result
    assert result is not None  # the evaluation has ended
    return result
