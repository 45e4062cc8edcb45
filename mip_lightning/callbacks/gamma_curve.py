"""GammaCurve: each evaluation metric against gamma."""

from collections import ChainMap
from pathlib import Path

from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, publish_figure, run_folder, writes_files
from mip_lightning.core.evaluation import Curve, EvaluationResult, Stage
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.diagnostics.curves import (
    IS_BEST,
    cells_with_mark,
    label_rows,
    plot_curves,
    plot_labels,
)
from mip_lightning.errors import UsageError


class GammaCurve(Callback):
    """Writes each metric at each gamma of the grid, after every validation and test.

    ``val_gamma_curve.csv`` has a row for each gamma and, in ``fit``, each validation;
    ``test_gamma_curve.csv`` one for each gamma. The figures ``val_gamma_curve.png`` (every N epochs
    and at the end of training) and ``test_gamma_curve.png`` go to TensorBoard too. They are in the
    run's folder. Of a metric that is known for each label, ``test_<metric>_by_label.csv`` and
    ``.png`` tell the same. Modules that are not a HyperLightningModule are left alone.

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
        if every_n_epochs < 1:
            raise UsageError(f"every_n_epochs={every_n_epochs}: give 1 or more")
        self.every_n_epochs = every_n_epochs
        self._folder = Path()
        self._resumed_at: int | None = None
        self._table: StepTable | None = None
        self._curves: dict[str, Curve] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = run_folder(trainer)
        self._resumed_at = None
        self._table = None
        self._curves = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = trainer.global_step if trainer.ckpt_path else None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not writes_files(trainer):
            return
        if isinstance(pl_module, HyperLightningModule):
            self._write(trainer, pl_module, _result(pl_module, "val").grid, "val")
            self._curves = dict(_result(pl_module, "val").curves)
            is_fit = trainer.state.fn == TrainerFn.FITTING
            if not is_fit or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
                self._plot_validation(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, HyperLightningModule) and self._curves:
            self._plot_validation(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, HyperLightningModule) and writes_files(trainer):
            result = _result(pl_module, "test")
            grid = result.grid
            path = self._write(trainer, pl_module, grid, "test")
            names = pl_module.model.prior.names
            figure = plot_curves(names, grid, dict(result.curves), result.references)
            figure.suptitle(r"Test metrics against the hypernetwork input $\gamma$")
            publish_figure(trainer, figure, path.with_suffix(".png"))
            rank_zero_info(f"Test metrics against gamma: {path.with_suffix('.png')} (and .csv)")
            for name, curve in result.curves.items():
                if curve.by_label:
                    self._write_labels(trainer, pl_module, name, curve)

    def _write_labels(
        self, trainer: Trainer, pl_module: HyperLightningModule, name: str, curve: Curve
    ) -> None:
        about = (
            pl_module.label_names,
            pl_module.model.prior.names,
            _result(pl_module, "test").grid,
            name,
            curve,
        )
        rows = label_rows(*about)
        table = StepTable(self._folder / f"test_{name}_by_label.csv", list(rows[0]), None)
        table.append(rows)
        path = table.path.with_suffix(".png")
        publish_figure(trainer, plot_labels(*about), path)
        rank_zero_info(f"{name} of each label against gamma: {path} (and .csv)")

    def _plot_validation(self, trainer: Trainer, pl_module: HyperLightningModule) -> None:
        assert self._table is not None
        result = _result(pl_module, "val")
        grid = result.grid
        figure = plot_curves(pl_module.model.prior.names, grid, self._curves, result.references)
        figure.suptitle(f"Validation metrics against gamma at step {trainer.global_step}")
        publish_figure(trainer, figure, self._table.path.with_suffix(".png"))

    def _write(
        self,
        trainer: Trainer,
        pl_module: HyperLightningModule,
        grid: Float[Tensor, "n D"],
        stage: Stage,
    ) -> Path:
        dimensions, curves = pl_module.model.prior.names, _result(pl_module, stage).curves
        when: dict[str, int] = {}
        if trainer.state.fn == TrainerFn.FITTING:
            when = {"step": trainer.global_step, "epoch": trainer.current_epoch + 1}
        if self._table is None:
            marks = [f"{n}{IS_BEST}" for n, c in curves.items() if c.higher_is_better is not None]
            self._table = StepTable(
                self._folder / f"{stage}_gamma_curve.csv",
                [*when, *dimensions, *curves, *marks],
                self._resumed_at,
            )
        cells_of = [cells_with_mark(name, curve) for name, curve in curves.items()]
        self._table.append(
            {**when, **dict(zip(dimensions, gamma, strict=True)), **ChainMap(*cells)}
            for gamma, cells in zip(grid.tolist(), zip(*cells_of, strict=True), strict=True)
        )
        return self._table.path


def _result(module: HyperLightningModule, stage: Stage) -> EvaluationResult:
    result = module.evaluation(stage).result
    assert result is not None  # the evaluation has ended
    return result
