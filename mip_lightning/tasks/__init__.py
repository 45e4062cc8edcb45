"""Tasks: subclasses of HyperLightningModule that supply losses and metrics."""

from mip_lightning.tasks.bayesian_classification import BayesianClassification
from mip_lightning.tasks.classification import Classification
from mip_lightning.tasks.deformation import Displacement, StationaryVelocity
from mip_lightning.tasks.registration import Registration
from mip_lightning.tasks.registration_losses import (
    SquaredError,
    SquaredGradientPenalty,
    TotalVariationPenalty,
)
from mip_lightning.tasks.segmentation import Segmentation
from mip_lightning.tasks.segmentation_losses import CrossEntropyThenSoftDice

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
