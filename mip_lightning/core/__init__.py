"""HyperLightningModule: training at sampled gamma, evaluation over a grid of gamma."""

from mip_lightning.core.batches import DrawsPerBatch, batch_size, take_samples
from mip_lightning.core.evaluation import (
    Curve,
    Evaluation,
    EvaluationResult,
    GammaMetrics,
    Stage,
)
from mip_lightning.core.evaluations import Evaluations
from mip_lightning.core.gamma_source import FromBatch, GammaSource
from mip_lightning.core.metrics import LabelledMetric, NaNAware, SeenNaN
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import StepOutput, TrainingBatch, Volume
from mip_lightning.core.own_gamma_evaluation import OwnGammaEvaluation
from mip_lightning.core.parameter_groups import GroupOptions
from mip_lightning.core.requested_gamma import GammaRequest, RequestedGamma
from mip_lightning.core.without_logging import without_logging

__all__ = [
    "Curve",
    "DrawsPerBatch",
    "Evaluation",
    "EvaluationResult",
    "Evaluations",
    "FromBatch",
    "GammaMetrics",
    "GammaRequest",
    "GammaSource",
    "GroupOptions",
    "HyperLightningModule",
    "LabelledMetric",
    "NaNAware",
    "OwnGammaEvaluation",
    "RequestedGamma",
    "SeenNaN",
    "Stage",
    "StepOutput",
    "TrainingBatch",
    "Volume",
    "batch_size",
    "take_samples",
    "without_logging",
]
