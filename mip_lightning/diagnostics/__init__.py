"""What weights, gradients, metrics and cost do over gamma: measured and plotted."""

from mip_lightning.diagnostics.cost import PrimaryCost, pareto_front
from mip_lightning.diagnostics.curves import draw_labels, label_rows
from mip_lightning.diagnostics.gradients import GradientNorms
from mip_lightning.diagnostics.weights import (
    Proportionality,
    WeightStatistics,
    along_axis,
    proportionality,
    weight_statistics,
)

__all__ = [
    "GradientNorms",
    "PrimaryCost",
    "Proportionality",
    "WeightStatistics",
    "along_axis",
    "draw_labels",
    "label_rows",
    "pareto_front",
    "proportionality",
    "weight_statistics",
]
