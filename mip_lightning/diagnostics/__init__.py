"""What weights, gradients, metrics and cost do over gamma: measured and plotted."""

from mip_lightning.diagnostics.cost import PrimaryCost, pareto_front
from mip_lightning.diagnostics.curves import label_rows, plot_labels
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
    "label_rows",
    "pareto_front",
    "plot_labels",
    "proportionality",
    "weight_statistics",
]
