"""Hypernetworks with Magnitude Invariant Parametrizations (MIP) in PyTorch Lightning."""

from mip_lightning.encodings import (
    ComplementEncoding,
    DirectionEncoding,
    Encoding,
    IdentityEncoding,
    L2Encoding,
)
from mip_lightning.errors import UsageError
from mip_lightning.heads import ChunkedHead, DenseHead, Head, LowRankHead
from mip_lightning.hypermodel import HyperModel
from mip_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from mip_lightning.minibatch import StepOutput, Volume
from mip_lightning.module import HyperLightningModule
from mip_lightning.optimizers import FactoredAdam, FactoredAdamW, FactoredSGD
from mip_lightning.priors import (
    Categorical,
    EndPointOversampling,
    Joint,
    LogOddsUniform,
    LogUniform,
    Normal,
    Prior,
    SquareRootUniform,
    Stratified,
    Uniform,
    Values,
)
from mip_lightning.selection import All, ByName, ByRegularExpression, ByType, Selection
from mip_lightning.sweep import LabelledMetric
from mip_lightning.theta import ThetaConfig

__all__ = [
    "All",
    "ByName",
    "ByRegularExpression",
    "ByType",
    "Categorical",
    "ChunkedHead",
    "ComplementEncoding",
    "DenseHead",
    "DirectionEncoding",
    "Encoding",
    "EndPointOversampling",
    "FactoredAdam",
    "FactoredAdamW",
    "FactoredSGD",
    "Head",
    "HyperLightningModule",
    "HyperModel",
    "Hypernetwork",
    "HypernetworkConfig",
    "IdentityEncoding",
    "Joint",
    "L2Encoding",
    "LabelledMetric",
    "LogOddsUniform",
    "LogUniform",
    "LowRankHead",
    "Normal",
    "Prior",
    "Selection",
    "SquareRootUniform",
    "StepOutput",
    "Stratified",
    "ThetaConfig",
    "Uniform",
    "UsageError",
    "Values",
    "Volume",
]
