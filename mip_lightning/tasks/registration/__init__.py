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
from mip_lightning.tasks.registration.task import Registration

__all__ = [
    "DiceBefore",
    "Displacement",
    "FoldedShare",
    "GradientMagnitude",
    "MeanDice",
    "Registration",
    "SquaredError",
    "SquaredGradientPenalty",
    "StationaryVelocity",
    "TotalVariationPenalty",
    "plot_registration",
]
