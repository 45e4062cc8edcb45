"""Metrics against gamma, each label's too: their tables and figures."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.core.evaluation import Curve
from mip_lightning.diagnostics._style import symbol
from mip_lightning.utilities.files import Value

ROW_HEIGHT = 0.24
"""Height of a label's row, in inches."""


def label_rows(
    names: Mapping[int, str],
    gammas: Sequence[str],
    grid: Float[Tensor, "n D"],
    metric: str,
    curve: Curve,
) -> list[dict[str, Value]]:
    """A row for each label and gamma, with whether this gamma is the label's best.

    Args:
        names: Name of each label, as far as they have one.
        gammas: Name of each dimension of gamma.
        grid: The values of gamma.
        metric: Name of the metric.
        curve: The metric.
    """
    return [
        {
            "label": label,
            "name": names.get(label, str(label)),
            **dict(zip(gammas, gamma, strict=True)),
            metric: value,
            "best": int(curve.best_by_label.get(label) == index and not math.isnan(value)),
        }
        for label, values in curve.by_label.items()
        for index, (gamma, value) in enumerate(zip(grid.tolist(), values.tolist(), strict=True))
    ]


def plot_labels(
    names: Mapping[int, str],
    gammas: Sequence[str],
    grid: Float[Tensor, "n D"],
    metric: str,
    curve: Curve,
) -> Figure:
    """A row of colors for each label over gamma, with a star at its best gamma.

    Colours tell by how much a gamma misses the label's best, whose value stands at the right: the
    labels differ from each other by far more than one does over gamma.

    Args:
        names: Name of each label, as far as they have one.
        gammas: Name of each dimension of gamma.
        grid: The values of gamma; where D > 1 they are numbered.
        metric: Name of the metric.
        curve: The metric.
    """
    labels = list(curve.by_label)
    rows = range(len(labels))
    word = metric.replace("_", " ")
    figure = Figure(figsize=(7.5, 1.6 + ROW_HEIGHT * len(labels)), layout="constrained")
    axes = figure.subplots()
    values = torch.stack([curve.by_label[label] for label in labels])
    colors, meaning, title = values, word, rf"{word} of each label against $\gamma$"
    if curve.best_by_label:
        best = torch.tensor([curve.best_by_label[label] for label in labels])
        optima = values.gather(1, best[:, None])
        colors, meaning = values - optima, f"{word}, less the label's best"
        title += "; a star at its best, which stands at the right"
        axes.plot(best.tolist(), rows, "*", color="red", linestyle="none")
        right = axes.secondary_yaxis("right")
        right.set_yticks(rows, [f"{value:.3f}" for value in optima[:, 0].tolist()])
        right.tick_params(labelsize="small")
    image = axes.imshow(colors.numpy(), aspect="auto")
    axes.set_yticks(rows, [names.get(label, str(label)) for label in labels])
    if grid.shape[1] == 1:
        axes.set_xticks(range(len(grid)), [f"{value:.3g}" for value in grid[:, 0].tolist()])
        axes.set_xlabel(symbol(gammas[0]))
    else:
        axes.set_xlabel(r"number of $\gamma$ in the grid")
    axes.set_ylabel("label")
    axes.tick_params(labelsize="small")
    figure.suptitle(title)
    figure.colorbar(image, label=meaning)
    return figure


IS_BEST = "_is_best"
"""What follows a metric's name in the name of the column that marks its best gamma."""


def cells_with_mark(name: str, curve: Curve) -> list[dict[str, float]]:
    """A metric at each gamma and, if it has a better end, whether this gamma is its best."""
    cells = [{name: value} for value in curve.values.tolist()]
    if curve.higher_is_better is not None:
        for index, cell in enumerate(cells):
            cell[f"{name}{IS_BEST}"] = int(index == curve.best and not math.isnan(cell[name]))
    return cells


def plot_curves(
    gammas: Sequence[str],
    grid: Float[Tensor, "n D"],
    curves: Mapping[str, Curve],
    references: Mapping[str, tuple[str, float]],
) -> Figure:
    """A panel for each metric: its value at each gamma, its mean, and its best gamma.

    Args:
        gammas: Name of each dimension of gamma.
        grid: The values of gamma; where D > 1 the horizontal axis is ``|gamma|``.
        curves: The metrics by name.
        references: What to show next to a metric, by its name: a label and a value.
    """
    one = grid.shape[1] == 1
    x = grid[:, 0] if one else grid.norm(dim=1)
    order = x.argsort()
    figure = Figure(figsize=(3.6 * len(curves), 3.6), layout="constrained")
    for axes, (name, curve) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        values = curve.values.cpu()
        axes.plot(x[order], values[order], "o-")
        axes.axhline(float(curve.mean), color="gray", ls=":", label=f"mean {curve.mean:.4g}")
        if curve.best is not None:
            best = float(values[curve.best])
            axes.plot(x[curve.best], best, "*", color="C3", ms=12, label=f"best {best:.4g}")
        if name in references:
            label, value = references[name]
            axes.axhline(value, color="C1", ls="--", label=f"{label} {value:.4g}")
        axes.set_title(name.replace("_", " "))
        axes.set_xlabel(symbol(gammas[0]) if one else r"$|\gamma|$")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
