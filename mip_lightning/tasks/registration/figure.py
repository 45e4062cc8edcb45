"""The figure of a registration: what is warped, how, and what is left of the difference."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

GRID_LINES = 16
"""Number of lines of a warped grid along the shorter axis."""


def plot_registration(
    moving: Float[Tensor, "*S"],
    fixed: Float[Tensor, "*S"],
    warped: Float[Tensor, "n *S"],
    displacements: Float[Tensor, "n axes *S"],
    gammas: Sequence[float],
    affine: Float[Tensor, "4 4"] | None,
) -> Figure:
    """A column for each gamma: warped image, warped grid, difference to the fixed image.

    Of volumes, the middle slice of the second axis (coronal in a brain).

    Args:
        moving: The moving image.
        fixed: The fixed image.
        warped: The moving image, warped at each gamma.
        displacements: The displacements, in voxels.
        gammas: The values of gamma.
        affine: From voxels to millimeters, which tells where up is; by default along the last axis.
    """
    last = moving.ndim - 1
    upside_down = affine is not None and bool(affine[:3, last].sum() < 0.0)
    if moving.ndim == 3:
        middle = moving.shape[1] // 2
        moving, fixed, warped = moving[:, middle], fixed[:, middle], warped[:, :, middle]
        displacements = displacements[:, [0, 2], :, middle]
    top = float(max(moving.max(), fixed.max()))
    columns = len(gammas) + 1
    shape = moving.shape[1] / moving.shape[0]
    figure = Figure(figsize=(2.1 * columns + 0.8, 6.3 * shape + 0.9), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    _show(axes[0, 0], fixed, "fixed", 0.0, top, "gray")
    _show(axes[1, 0], moving, "moving", 0.0, top, "gray")
    difference = _show(axes[2, 0], moving - fixed, "moving - fixed", -top, top, "RdBu_r")
    for column, (gamma, image, displacement) in enumerate(
        zip(gammas, warped, displacements, strict=True), start=1
    ):
        _show(axes[0, column], image, rf"warped, $\gamma$ = {gamma:.3g}", 0.0, top, "gray")
        _grid(axes[1, column], displacement)
        _show(axes[2, column], image - fixed, "warped - fixed", -top, top, "RdBu_r")
    for panel in axes.flat:
        if upside_down:
            panel.invert_yaxis()
    figure.colorbar(difference, ax=axes[2], label="intensity", shrink=0.9)
    figure.suptitle(r"Registration over the weight $\gamma$ of its regularization (axes in voxels)")
    return figure


def _show(
    axes: Axes, image: Float[Tensor, "X Y"], title: str, low: float, high: float, colors: str
) -> AxesImage:
    shown = axes.imshow(image.T.numpy(), origin="lower", cmap=colors, vmin=low, vmax=high)
    axes.set_title(title, fontsize="small")
    axes.tick_params(labelsize="x-small")
    return shown


def _grid(axes: Axes, displacement: Float[Tensor, "2 X Y"]) -> None:
    """Lines of the fixed image's voxels where they lie in the moving image."""
    size = displacement.shape[1:]
    step = max(1, min(size) // GRID_LINES)
    where = [torch.arange(length, dtype=displacement.dtype) for length in size]
    x, y = torch.stack(torch.meshgrid(*where, indexing="ij")) + displacement
    axes.plot(x[::step].T, y[::step].T, color="C0", lw=0.5)
    axes.plot(x[:, ::step], y[:, ::step], color="C0", lw=0.5)
    axes.set_xlim(-0.5, size[0] - 0.5)
    axes.set_ylim(-0.5, size[1] - 0.5)
    axes.set_aspect("equal")
    axes.set_title("warped grid", fontsize="small")
    axes.tick_params(labelsize="x-small")
