"""Segmentation over scales."""

from mip_lightning.tasks.segmentation.figure import plot_segmentation
from mip_lightning.tasks.segmentation.losses import CrossEntropyThenSoftDice
from mip_lightning.tasks.segmentation.task import Segmentation

__all__ = [
    "CrossEntropyThenSoftDice",
    "Segmentation",
    "plot_segmentation",
]
