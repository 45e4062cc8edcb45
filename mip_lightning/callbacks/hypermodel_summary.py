"""HyperModelSummary: what is predicted and what that takes, once before training."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from mip_lightning.core.module import HyperLightningModule


class HyperModelSummary(ModelSummary):
    """Prints ``HyperModel.summary()`` at the start of ``fit``, in place of Lightning's table.

    Modules that are not a HyperLightningModule get Lightning's.
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, HyperLightningModule):
            rank_zero_info(f"\n{pl_module.model.summary()}")
        else:
            super().on_fit_start(trainer, pl_module)
