"""HyperCallback: what callbacks that look into a hypernetwork share."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from mip_lightning.callbacks._files import run_folder
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import TrainingBatch
from mip_lightning.errors import UsageError


class HyperCallback(Callback):
    """Refuses what is no HyperLightningModule, and learns the run's folder.

    Attributes:
        folder: Where the run's files go, once ``setup`` was called.
    """

    def __init__(self) -> None:
        self.folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the run's folder, on all ranks.

        Raises:
            UsageError: If the module is no HyperLightningModule.
        """
        if not isinstance(pl_module, HyperLightningModule):
            raise UsageError(
                f"{type(self).__name__} on a {type(pl_module).__name__}: it needs a"
                " HyperLightningModule"
            )
        self.folder = run_folder(trainer)


def hyper_module(pl_module: LightningModule) -> HyperLightningModule:
    """The module, of which ``setup`` has seen that it is one of ours."""
    assert isinstance(pl_module, HyperLightningModule)
    return pl_module


def latest_batch(pl_module: LightningModule) -> TrainingBatch:
    """Gamma and output of the training batch that has just been run."""
    latest = hyper_module(pl_module).latest
    assert latest is not None  # hooks that ask are called after a batch
    return latest
