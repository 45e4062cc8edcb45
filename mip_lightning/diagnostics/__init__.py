"""What weights, gradients, metrics and cost do over gamma: measured and plotted."""

from mip_lightning.diagnostics.cost import PrimaryCost, pareto_front, plot_cost
from mip_lightning.diagnostics.curves import label_rows, plot_curves, plot_labels
from mip_lightning.diagnostics.distributions import collect, estimate, plot_distributions
from mip_lightning.diagnostics.gradients import (
    GradientNorms,
    plot_gradient_statistics,
    statistics,
)
from mip_lightning.diagnostics.weights import (
    Proportionality,
    WeightStatistics,
    along_axis,
    plot_weight_statistics,
    proportionality,
    weight_statistics,
)

__all__ = [
    "GradientNorms",
    "PrimaryCost",
    "Proportionality",
    "WeightStatistics",
    "along_axis",
    "collect",
    "estimate",
    "label_rows",
    "pareto_front",
    "plot_cost",
    "plot_curves",
    "plot_distributions",
    "plot_gradient_statistics",
    "plot_labels",
    "plot_weight_statistics",
    "proportionality",
    "statistics",
    "weight_statistics",
]
