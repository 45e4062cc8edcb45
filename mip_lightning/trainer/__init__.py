"""Lightning's Trainer with export, select-gamma and predict at a gamma."""

from mip_lightning.trainer.export import export_network
from mip_lightning.trainer.gamma_search import FlopsBudget, GammaSearch
from mip_lightning.trainer.trainer import HyperTrainer

__all__ = [
    "FlopsBudget",
    "GammaSearch",
    "HyperTrainer",
    "export_network",
]
