"""A metric of each label against gamma: its table and its figure."""

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
    """A row of colours for each label over gamma, with a star at its best gamma.

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
    colours, meaning, title = values, word, rf"{word} of each label against $\gamma$"
    if curve.best_by_label:
        best = torch.tensor([curve.best_by_label[label] for label in labels])
        optima = values.gather(1, best[:, None])
        colours, meaning = values - optima, f"{word}, less the label's best"
        title += "; a star at its best, which stands at the right"
        axes.plot(best.tolist(), rows, "*", color="red", linestyle="none")
        right = axes.secondary_yaxis("right")
        right.set_yticks(rows, [f"{value:.3f}" for value in optima[:, 0].tolist()])
        right.tick_params(labelsize="small")
    image = axes.imshow(colours.numpy(), aspect="auto")
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
