"""Hypernetworks with Magnitude Invariant Parametrizations (MIP) in PyTorch Lightning."""

from mip_lightning.encodings import Encoding, IdentityEncoding, L2Encoding
from mip_lightning.errors import UsageError
from mip_lightning.hypermodel import HyperModel
from mip_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from mip_lightning.module import HyperLightningModule, StepOutput
from mip_lightning.priors import LogUniform, Normal, Prior, Uniform

__all__ = [
    "Encoding",
    "HyperLightningModule",
    "HyperModel",
    "Hypernetwork",
    "HypernetworkConfig",
    "IdentityEncoding",
    "L2Encoding",
    "LogUniform",
    "Normal",
    "Prior",
    "StepOutput",
    "Uniform",
    "UsageError",
]
