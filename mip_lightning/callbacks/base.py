"""HyperCallback: what callbacks that look into a hypernetwork share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from typing_extensions import override

from mip_lightning.callbacks._files import StepTable, publish_figure, run_folder, writes_files
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import TrainingBatch
from mip_lightning.errors import UsageError


class HyperCallback(Callback):
    """A callback on a HyperLightningModule: it knows the run's folder, and writes there.

    Attributes:
        folder: Where the run's files go, once ``setup`` was called.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self._resumed_at: int | None = None  # step of the checkpoint that a fit goes on from

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the run's folder, on all ranks.

        Raises:
            UsageError: If the module is not a HyperLightningModule.
        """
        if not isinstance(pl_module, HyperLightningModule):
            raise UsageError(
                f"{type(self).__name__} on a {type(pl_module).__name__}: it needs a"
                " HyperLightningModule"
            )
        self.folder = run_folder(trainer)
        self._resumed_at = None

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._resumed_at = checkpoint["global_step"]

    def table(self, trainer: Trainer, name: str, columns: Sequence[str]) -> StepTable:
        """A table of the run's folder, written on rank 0; make it after ``setup``.

        A resumed run goes on with its table, without the rows that the interrupted one wrote after
        the checkpoint. Any other run takes a new name if the file is there.

        Args:
            trainer: The trainer.
            name: Name of the CSV file.
            columns: Names of the columns; in training the first is ``step``.
        """
        return StepTable(self.folder / name, columns, self._resumed_at, writes_files(trainer))

    def publish(self, trainer: Trainer, figure: Figure, path: Path, tag: str | None = None) -> None:
        """Write a figure as PNG, and to each logger that takes figures, on rank 0.

        Args:
            trainer: The trainer.
            figure: The figure.
            path: The PNG file.
            tag: Name in the loggers; by default that of the file.
        """
        if writes_files(trainer):
            publish_figure(trainer, figure, path, tag)


def hyper_module(pl_module: LightningModule) -> HyperLightningModule:
    """The module; ``setup`` has checked its type."""
    assert isinstance(pl_module, HyperLightningModule)
    return pl_module


def latest_batch(pl_module: LightningModule) -> TrainingBatch:
    """Gamma and output of the training batch that has just been run."""
    latest = hyper_module(pl_module).latest
    assert latest is not None  # hooks that ask are called after a batch
    return latest
