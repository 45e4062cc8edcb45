"""ExampleFigures: what the network makes of one batch, at several gamma, as training goes on."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from mip_lightning.callbacks._files import writes_files
from mip_lightning.callbacks.base import HyperCallback, hyper_module
from mip_lightning.errors import UsageError
from mip_lightning.utilities.modes import eval_mode


class ExampleFigures(HyperCallback):
    """Draws the first validation batch every N epochs and at the end, and the first test batch.

    What is drawn is the task's (``plot_examples``). The figures ``val_<name>_<step>.png`` and
    ``test_<name>.png`` are in the run's folder, and go to TensorBoard.

    Args:
        every_n_epochs: Draw at each N-th epoch with a validation.
        num_gammas: Number of gamma, from the prior's grid.

    Raises:
        UsageError: If a value is below 1.
    """

    def __init__(self, every_n_epochs: int = 10, num_gammas: int = 5) -> None:
        super().__init__()
        for name, value in (("every_n_epochs", every_n_epochs), ("num_gammas", num_gammas)):
            if value < 1:
                raise UsageError(f"{name}={value}: give 1 or more")
        self.every_n_epochs = every_n_epochs
        self.num_gammas = num_gammas
        self._batch: Any = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = None

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._batch = batch
            if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
                self._plot_kept(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with eval_mode(pl_module):
            self._plot_kept(trainer, pl_module)

    def _plot_kept(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batch is not None:
            self._plot(trainer, pl_module, self._batch, "val", f"_{trainer.global_step}")
            self._batch = None

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._plot(trainer, pl_module, batch, "test", "")

    def _plot(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: str, suffix: str
    ) -> None:
        if not writes_files(trainer):
            return
        module = hyper_module(pl_module)
        with torch.no_grad():
            figures = module.plot_examples(batch, module.model.prior.grid(self.num_gammas))
        for name, figure in figures.items():
            tag = f"{stage}_{name}"
            self.publish(trainer, figure, self.folder / f"{tag}{suffix}.png", tag)
