"""A metric of each label against gamma: its table and its figure."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.callbacks.files import Value, symbol
from mip_lightning.sweep import Curve

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
            "best": int(curve.best_by_label.get(label) == index),
        }
        for label, values in curve.by_label.items()
        for index, (gamma, value) in enumerate(zip(grid.tolist(), values.tolist(), strict=True))
    ]


def draw_labels(
    names: Mapping[int, str],
    gammas: Sequence[str],
    grid: Float[Tensor, "n D"],
    metric: str,
    curve: Curve,
) -> Figure:
    """A row of colours for each label over gamma, with a star at its best gamma.

    Args:
        names: Name of each label, as far as they have one.
        gammas: Name of each dimension of gamma.
        grid: The values of gamma; where D > 1 they are numbered.
        metric: Name of the metric.
        curve: The metric.
    """
    labels = list(curve.by_label)
    word = metric.replace("_", " ")
    figure = Figure(figsize=(7.0, 1.6 + ROW_HEIGHT * len(labels)), layout="constrained")
    axes = figure.subplots()
    values = torch.stack([curve.by_label[label] for label in labels])
    image = axes.imshow(values.numpy(), aspect="auto")
    best = curve.best_by_label
    axes.plot(
        [best[label] for label in labels if label in best],
        [row for row, label in enumerate(labels) if label in best],
        "*",
        color="red",
        linestyle="none",
    )
    axes.set_yticks(range(len(labels)), [names.get(label, str(label)) for label in labels])
    if grid.shape[1] == 1:
        axes.set_xticks(range(len(grid)), [f"{value:.3g}" for value in grid[:, 0].tolist()])
        axes.set_xlabel(symbol(gammas[0]))
    else:
        axes.set_xlabel(r"number of $\gamma$ in the grid")
    axes.set_ylabel("label")
    axes.tick_params(labelsize="small")
    axes.set_title(rf"{word} of each label against $\gamma$; a star at its best")
    figure.colorbar(image, label=word)
    return figure
