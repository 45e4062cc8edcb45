"""Tasks: subclasses of HyperLightningModule that supply losses and metrics."""

from mip_lightning.tasks.bayesian_classification import BayesianClassification
from mip_lightning.tasks.deformation import Displacement, StationaryVelocity
from mip_lightning.tasks.registration import Registration
from mip_lightning.tasks.registration_losses import (
    SquaredError,
    SquaredGradientPenalty,
    TotalVariationPenalty,
)

__all__ = [
    "BayesianClassification",
    "Displacement",
    "Registration",
    "SquaredError",
    "SquaredGradientPenalty",
    "StationaryVelocity",
    "TotalVariationPenalty",
]
