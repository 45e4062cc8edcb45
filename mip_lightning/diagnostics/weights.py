"""The scale of the predicted weights at each gamma of a grid, and how it depends on gamma."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.diagnostics._style import symbol
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.priors import Prior
from mip_lightning.utilities.norms import norm
from mip_lightning.utilities.precision import at_least_float32, real_numbers

ALL = "all"
"""Name under which all predicted tensors are taken together."""


class Proportionality(NamedTuple):
    """Least-squares line of std(theta) against ``|gamma|``.

    Attributes:
        slope: In units of the mean std, so that it is comparable between networks: 2 for a line
            through zero over an evenly spaced grid from 0, about 0 where the scale does not
            depend on gamma.
        r2: Share of the variance of std that the line explains; 0 where std is constant.
    """

    slope: float
    r2: float


def proportionality(magnitude: Float[Tensor, " n"], std: Float[Tensor, " n"]) -> Proportionality:
    """Fit the line, in float64.

    Args:
        magnitude: ``|gamma|`` of each grid value.
        std: Standard deviation of the predicted weights there.
    """
    x, y = magnitude.double(), std.double()
    x, deviation = x - x.mean(), y - y.mean()
    explained, total = x @ x, deviation @ deviation
    if explained == 0 or total == 0:
        return Proportionality(0.0, 0.0)
    slope = (x @ deviation) / explained
    r2 = (x @ deviation) ** 2 / (explained * total)
    return Proportionality(float(slope / y.mean()), float(r2))


class WeightStatistics(NamedTuple):
    """Of one predicted tensor at each of n gammas, over its elements, on the CPU.

    Attributes:
        std: Standard deviation (population form, so that a tensor of one element has 0).
        mean: Mean.
        norm: Euclidean norm.
    """

    std: Float[Tensor, " n"]
    mean: Float[Tensor, " n"]
    norm: Float[Tensor, " n"]


@torch.no_grad()
def weight_statistics(model: HyperModel, grid: Float[Tensor, "n D"]) -> dict[str, WeightStatistics]:
    """Statistics of the predicted weights, for ``all`` and for each predicted tensor."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for gamma in grid:
        theta = {
            name: at_least_float32(real_numbers(t))
            for name, t in model.at(gamma, check=False).theta.items()
        }
        everything = torch.cat([tensor.flatten() for tensor in theta.values()])
        for name, tensor in {ALL: everything, **theta}.items():
            found[name].append(torch.stack([tensor.std(correction=0), tensor.mean(), norm(tensor)]))
    return {
        name: WeightStatistics(*torch.stack(values).cpu().unbind(dim=1))
        for name, values in found.items()
    }


def along_axis(prior: Prior, dimension: int, n: int) -> Float[Tensor, "n D"]:
    """A grid along one dimension of gamma, with the others at their medians.

    Args:
        prior: The prior.
        dimension: The dimension that varies.
        n: Number of values.
    """
    levels = torch.full((n, prior.dim), 0.5)
    grid = prior.quantile(levels)
    grid[:, dimension] = prior.grid_in_orders([torch.arange(n)] * prior.dim)[:, dimension]
    return grid


GRID = "grid"
"""The prior's grid, among the lines of gamma along which weights are recorded."""


MAX_LEGEND = 24
"""More lines than these have no legend."""


Stds: TypeAlias = dict[str, list[float]]
"""For each tensor, or each line of gamma, its std at each gamma."""


def plot_weight_statistics(
    rows: Sequence[Mapping[str, Any]],
    lines: Mapping[str, Float[Tensor, "n D"]],
    names: Sequence[str],
) -> Figure:
    """The std of theta against gamma, before training and now; of each tensor; along each axis.

    Args:
        rows: Rows of ``predicted_weight_stats.csv``.
        lines: The gammas of each line.
        names: Name of each dimension of gamma.
    """
    together: Stds = defaultdict(list)
    each: Stds = defaultdict(list)
    axes_of_gamma: Stds = defaultdict(list)
    last = int(rows[-1]["step"])
    epoch = rows[-1]["epoch"]
    for row in rows:
        step, line, tensor, std = int(row["step"]), row["line"], row["tensor"], float(row["std"])
        now = f"after epoch {epoch} (step {last})" if last else "before training"
        if line == GRID and tensor == ALL and step in (0, last):
            together["before training" if step == 0 else now].append(std)
        elif line == GRID and step == last:
            each[tensor].append(std)
        elif tensor == ALL and step == last:
            axes_of_gamma[line].append(std)
    figure = Figure(figsize=(13 + 5 * (len(lines) > 1), 4.8), layout="constrained")
    panels = figure.subplots(1, 2 + (len(lines) > 1))
    plot_std(panels[0], names, lines[GRID], together)
    panels[0].set_title("all predicted weights together")
    _plot_each(panels[1], names, lines[GRID], each, now)
    if axes_of_gamma:
        _plot_axes(panels[2], lines, axes_of_gamma, now)
    elif len(lines) > 1:
        panels[2].set_axis_off()
    return figure


def plot_std(
    axes: Axes, names: Sequence[str], grid: Float[Tensor, "n D"], records: Mapping[str, list[float]]
) -> None:
    """The std of all weights against gamma, with the line's slope and R^2 in the legend.

    Args:
        axes: Where to plot.
        names: Name of each dimension of gamma.
        grid: The values of gamma.
        records: The std at each gamma, before training and after some of it, by what to call them.
    """
    x, order = _prepare(axes, names, grid)
    for style, (when, stds) in zip(("o--", "s-"), records.items(), strict=False):
        std = torch.tensor(stds)
        fit = proportionality(grid.norm(dim=1), std)
        label = f"{when}: slope {fit.slope:+.2f}, $R^2$ {fit.r2:.2f}"
        axes.plot(x[order], std[order], style, label=label)
    axes.set_ylim(0, 1.1 * max(max(stds) for stds in records.values()) or None)
    axes.legend(fontsize="small")


def _plot_each(
    axes: Axes, names: Sequence[str], grid: Float[Tensor, "n D"], stds: Stds, when: str
) -> None:
    """The std of each tensor against gamma, in the order of the network's tensors."""
    x, order = _prepare(axes, names, grid)
    colors = colormaps["viridis"](torch.linspace(0, 0.9, len(stds)).tolist())
    for color, (name, values) in zip(colors, stds.items(), strict=True):
        style = ".:" if name.endswith("bias") else ".-"
        axes.plot(x[order], torch.tensor(values)[order], style, color=color, label=name)
    axes.set_title(f"each of {len(stds)} tensors, {when}")
    axes.set_yscale("log" if any(max(values) > 0 for values in stds.values()) else "linear")
    if len(stds) <= MAX_LEGEND:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plot_axes(axes: Axes, lines: Mapping[str, Tensor], stds: Stds, when: str) -> None:
    """The std of all weights along each dimension of gamma, from its lowest to highest value."""
    for dimension, (line, values) in enumerate(stds.items()):
        gamma = lines[line][:, dimension]
        unit = (gamma - gamma.min()) / (gamma.max() - gamma.min())
        axes.plot(unit, values, ".-", label=f"{line}: {gamma.min():.3g} to {gamma.max():.3g}")
    axes.set_title(f"along each dimension, {when}")
    axes.set_xlabel("one dimension, from low to high (others at their medians)")
    axes.set_ylabel(r"standard deviation of $\theta$")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(stds) <= MAX_LEGEND:
        axes.legend(fontsize="small")


def _prepare(axes: Axes, names: Sequence[str], grid: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
    """Label the axes; gamma itself is the horizontal one where D = 1, else its norm."""
    one = len(names) == 1
    label = f"hypernetwork input {symbol(names[0])}" if one else r"norm of the input $|\gamma|$"
    axes.set_xlabel(label)
    axes.set_ylabel(r"standard deviation of $\theta$")
    axes.grid(alpha=0.3)
    x = grid[:, 0] if one else grid.norm(dim=1)
    return x, x.argsort()
