"""Tasks: subclasses of HyperLightningModule that supply losses and metrics."""

from mip_lightning.tasks.classification import BayesianClassification, Classification
from mip_lightning.tasks.registration import (
    Displacement,
    Registration,
    SquaredError,
    SquaredGradientPenalty,
    StationaryVelocity,
    TotalVariationPenalty,
)
from mip_lightning.tasks.segmentation import CrossEntropyThenSoftDice, Segmentation

__all__ = [
    "BayesianClassification",
    "Classification",
    "CrossEntropyThenSoftDice",
    "Displacement",
    "Registration",
    "Segmentation",
    "SquaredError",
    "SquaredGradientPenalty",
    "StationaryVelocity",
    "TotalVariationPenalty",
]
