"""HyperLightningModule: training at drawn gamma, evaluation over a grid of gamma."""

from mip_lightning.core._minibatch import StepOutput, Volume
from mip_lightning.core.module import DrawsPerBatch, HyperLightningModule, Stage
from mip_lightning.core.parameter_groups import GroupOptions
from mip_lightning.core.requested_gamma import GammaRequest, RequestedGamma
from mip_lightning.core.sweep import Curve, GammaSweep, LabelledMetric, NaNAware, SeenNaN

__all__ = [
    "Curve",
    "DrawsPerBatch",
    "GammaRequest",
    "GammaSweep",
    "GroupOptions",
    "HyperLightningModule",
    "LabelledMetric",
    "NaNAware",
    "RequestedGamma",
    "SeenNaN",
    "Stage",
    "StepOutput",
    "Volume",
]
