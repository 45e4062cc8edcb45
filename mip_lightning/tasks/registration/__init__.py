"""Registration: the deformation that warps one image to another."""

from mip_lightning.tasks.registration.deformation import Displacement, StationaryVelocity
from mip_lightning.tasks.registration.figure import plot_registration
from mip_lightning.tasks.registration.losses import (
    SquaredError,
    SquaredGradientPenalty,
    TotalVariationPenalty,
)
from mip_lightning.tasks.registration.metrics import (
    DiceBefore,
    FoldedShare,
    GradientMagnitude,
    MeanDice,
)
from mip_lightning.tasks.registration.pairs import OwnPairs, Pair, own_pairs
from mip_lightning.tasks.registration.task import Registration

__all__ = [
    "DiceBefore",
    "Displacement",
    "FoldedShare",
    "GradientMagnitude",
    "MeanDice",
    "OwnPairs",
    "Pair",
    "Registration",
    "SquaredError",
    "SquaredGradientPenalty",
    "StationaryVelocity",
    "TotalVariationPenalty",
    "own_pairs",
    "plot_registration",
]
