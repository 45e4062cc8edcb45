"""What is clever and small: factored gradients, replicas, spatial transforms; see README.md."""

from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.functional.factors import Factors, max_pairs
from mip_lightning.functional.linear import (
    factored_linear,
    keep_in_factors,
    why_written_out,
)
from mip_lightning.functional.replica import ReplicaCall
from mip_lightning.functional.spatial_transform import integrate, warp

__all__ = [
    "FactoredGradient",
    "Factors",
    "ReplicaCall",
    "factored_linear",
    "integrate",
    "keep_in_factors",
    "max_pairs",
    "warp",
    "why_written_out",
]
