"""The figure of a segmentation: an image, its labels, and those predicted at some gamma."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

SIZE = 2.4
"""Width of a panel, in inches."""

MAX_NAMES = 8
"""More labels are not told by name."""


def plot_segmentation(
    image: Float[Tensor, "*S"],
    labels: Integer[Tensor, "*S"],
    found: Integer[Tensor, "n *S"],
    gammas: Sequence[str],
    names: Mapping[int, str],
    affine: Float[Tensor, "4 4"] | None,
) -> Figure:
    """The image, its true labels over it, and those found at each gamma.

    Of volumes, the middle slice of the second axis (coronal in a brain).

    Args:
        image: The image.
        labels: Its labels, 0 the background.
        found: The labels that were predicted.
        gammas: The values of gamma, as titles tell them.
        names: Names of labels, told where they are few.
        affine: From voxels to millimeters, which tells where up is; by default along the last axis.
    """
    last = image.ndim - 1
    upside_down = affine is not None and bool(affine[:3, last].sum() < 0.0)
    if image.ndim == 3:
        middle = image.shape[1] // 2
        image, labels, found = image[:, middle], labels[:, middle], found[:, :, middle]
    most = max(1, int(labels.max()), int(found.max()))
    columns = len(gammas) + 2
    shape = image.shape[1] / image.shape[0]
    figure = Figure(figsize=(SIZE * columns, SIZE * shape + 0.8), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    _show(panels[0], image, None, most, "image")
    _show(panels[1], image, labels, most, "true labels")
    for panel, gamma, map_ in zip(panels[2:], gammas, found, strict=True):
        _show(panel, image, map_, most, rf"predicted, $\gamma$ = {gamma}")
    if 0 < len(names) <= MAX_NAMES:
        colors = _colors(most)
        patches = [
            Patch(color=colors[label - 1], label=name)
            for label, name in names.items()
            if 1 <= label <= most
        ]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(names))
    for panel in panels:
        if upside_down:
            panel.invert_yaxis()
    figure.suptitle(r"Segmentation over the hypernetwork input $\gamma$ (axes in voxels)")
    return figure


def _show(
    axes: Axes,
    image: Float[Tensor, "X Y"],
    labels: Integer[Tensor, "X Y"] | None,
    most: int,
    title: str,
) -> None:
    axes.imshow(image.T.numpy(), origin="lower", cmap="gray")
    if labels is not None:
        shown = np.ma.masked_equal(labels.T.numpy(), 0)
        colors = ListedColormap(_colors(most))
        axes.imshow(
            shown, origin="lower", cmap=colors, vmin=0.5, vmax=most + 0.5, interpolation="nearest"
        )
    axes.set_title(title, fontsize="small")
    axes.tick_params(labelsize="x-small")


def _colors(count: int) -> list[tuple[float, float, float]]:
    """Colours that differ from their neighbors': hues a golden angle apart."""
    return [tuple(hsv_to_rgb((0.618 * k % 1.0, 0.75, 0.95))) for k in range(count)]
