"""Priors p(gamma): where hypernetwork inputs come from, and which range they span.

A prior knows its support. It draws gamma for training, gives the grid over which evaluation
sweeps, maps gamma to [0, 1] for the input encoding, and checks a gamma that a user gives.
"""

from mip_lightning.priors.base import Gamma, Prior, format_gamma, sample_of_batch
from mip_lightning.priors.composed import EndPointOversampling, Joint, Stratified
from mip_lightning.priors.continuous import (
    LogOddsUniform,
    LogUniform,
    Normal,
    SquareRootUniform,
    Uniform,
)
from mip_lightning.priors.discrete import Categorical, Values
from mip_lightning.priors.simplex import Dirichlet

__all__ = [
    "Categorical",
    "Dirichlet",
    "EndPointOversampling",
    "Gamma",
    "Joint",
    "LogOddsUniform",
    "LogUniform",
    "Normal",
    "Prior",
    "SquareRootUniform",
    "Stratified",
    "Uniform",
    "Values",
    "format_gamma",
    "sample_of_batch",
]
