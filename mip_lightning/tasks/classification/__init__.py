"""Classification: Bayesian, and over scales."""

from mip_lightning.tasks.classification.bayesian import BayesianClassification
from mip_lightning.tasks.classification.ensemble import EnsembleMetrics
from mip_lightning.tasks.classification.task import Classification
from mip_lightning.tasks.classification.uncertainty import (
    NegativeLogLikelihood,
    TopLabelCalibrationError,
    ensemble,
    entropy,
    mutual_information,
)

__all__ = [
    "BayesianClassification",
    "Classification",
    "EnsembleMetrics",
    "NegativeLogLikelihood",
    "TopLabelCalibrationError",
    "ensemble",
    "entropy",
    "mutual_information",
]
