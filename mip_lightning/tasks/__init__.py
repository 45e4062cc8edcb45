"""Tasks: subclasses of HyperLightningModule that supply losses and metrics."""

from mip_lightning.tasks.bayesian_classification import BayesianClassification

__all__ = ["BayesianClassification"]
