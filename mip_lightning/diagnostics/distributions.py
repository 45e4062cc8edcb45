"""Densities of weights and activations at several gamma, next to an ordinary network."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mip_lightning.core.module import HyperLightningModule
from mip_lightning.diagnostics._style import symbol
from mip_lightning.hypernetworks.gamma_argument import fix_gamma
from mip_lightning.utilities.modes import eval_mode
from mip_lightning.utilities.nested import tensors_in
from mip_lightning.utilities.precision import real_numbers

MAX_VALUES = 4000
"""Values, evenly picked, that a density is estimated from."""


ORDINARY_INDEX = -1


ORDINARY = "ordinary"
"""What a table calls the network that no hypernetwork predicts."""


MAX_COLUMNS = 6
"""More layers than these are drawn as every n-th one."""


NUM_POINTS = 200
"""Points at which a density is evaluated."""


Panel: TypeAlias = tuple[str, str]
"""``weights`` or ``activations``, and the name of the layer."""


Curves: TypeAlias = dict[int, tuple[np.ndarray, np.ndarray]]
"""Index of the gamma, or -1 for the ordinary network, to values and their density."""


def collect(
    module: HyperLightningModule, ordinary: nn.Module, batch: Any, grid: Float[Tensor, "n D"]
) -> dict[Panel, dict[int, np.ndarray]]:
    """Weights and activations at each gamma (by index) and of the ordinary network (by -1).

    Args:
        module: The module; its modes and buffers stay as they are.
        ordinary: The ordinary network, from ``original_primary`` before training.
        batch: What the activations are those of.
        grid: The gammas.
    """
    with torch.no_grad(), eval_mode(module):
        _take_types(ordinary, module.model.primary)
        return _collect(module, ordinary.eval(), batch, grid)


def _take_types(network: nn.Module, other: nn.Module) -> None:
    """Move what a network holds to the device of another one like it, and to its number types.

    Each by itself: a network may have real and complex parameters.
    """
    theirs = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        tensor.data = tensor.data.to(theirs[name].device, theirs[name].dtype)


def _collect(
    module: HyperLightningModule, ordinary: nn.Module, batch: Any, grid: Float[Tensor, "n D"]
) -> dict[Panel, dict[int, np.ndarray]]:
    model = module.model
    matrices = {n: s for n, s in model.layout.shapes.items() if len(s) > 1}
    layers = {name.rpartition(".")[0]: name for name in matrices}
    samples: dict[Panel, dict[int, np.ndarray]] = defaultdict(dict)
    gammas = grid.to(module.device)
    (call, *_) = module.primary_calls(batch, gammas[:1])
    fix_gamma(ordinary, grid[len(grid) // 2])
    for index in (ORDINARY_INDEX, *range(len(grid))):
        network = ordinary if index < 0 else model.primary
        with _outputs(network, layers) as outputs:
            if index < 0:
                args, kwargs = call
                ordinary(*args, **kwargs)
                theta: Mapping[str, Tensor] = dict(ordinary.named_parameters())
            else:
                primary = model.at(grid[index], check=False)
                theta = primary.theta
                primary(*call.args, **call.kwargs)
        for layer, name in layers.items():
            samples["weights", layer or name][index] = _pick(theta[name])
            if layer in outputs:
                samples["activations", layer or name][index] = _pick(outputs[layer])
    return samples


def estimate(samples: Mapping[int, np.ndarray]) -> Curves:
    """Gaussian kernel densities, each over the range of its own sample.

    A density is known at ``NUM_POINTS`` points from the 0.001 to the 0.999 quantile, with 4 kernel
    bandwidths more at both ends, so its integral is 1 but for what lies outside. Where all values
    are one (to 1e-6 of their size), there is one point with an infinite density.

    Args:
        samples: Values by index.
    """
    return {index: _density(values) for index, values in samples.items()}


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import gaussian_kde

    if np.ptp(values) <= 1e-6 * np.abs(values).max():
        return values[:1], np.array([np.inf])
    kernel = gaussian_kde(values)
    margin = 4 * math.sqrt(kernel.covariance.item())
    low, high = np.quantile(values, [0.001, 0.999])
    points = np.linspace(low - margin, high + margin, NUM_POINTS)
    return points, kernel(points)


def plot_distributions(
    densities: Mapping[Panel, Curves], names: Sequence[str], grid: Float[Tensor, "n D"]
) -> Figure:
    """A column for each layer: its weights above, its activations below."""
    layers = list(dict.fromkeys(layer for _, layer in densities))
    shown = layers[:: max(1, math.ceil(len(layers) / MAX_COLUMNS))]
    figure = Figure(figsize=(3.4 * len(shown) + 2.5, 6.5), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    for row, of in enumerate(("weights", "activations")):
        for column, layer in enumerate(shown):
            plot_densities(panels[row][column], densities.get((of, layer), {}), names, grid)
            panels[row][column].set_title(f"{of} of {layer}", fontsize="medium")
            panels[row][column].set_xlabel("weight" if of == "weights" else "activation")
        panels[row][0].set_ylabel("density")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure


def plot_densities(
    axes: Axes, curves: Curves, names: Sequence[str], grid: Float[Tensor, "n D"]
) -> None:
    """The densities of one layer; a vertical line where all values are one.

    Args:
        axes: Where to plot.
        curves: The densities.
        names: Name of each dimension of gamma.
        grid: The gammas that the curves' indices count.
    """
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(grid)))
    for index, color in enumerate(colors):
        label = ", ".join(
            f"{symbol(name)} = {value:.3g}"
            for name, value in zip(names, grid[index].tolist(), strict=True)
        )
        label = label if len(label) < 40 else rf"$\gamma$ number {index}"
        _plot_density(axes, curves.get(index), label, color=color)
    _plot_density(axes, curves.get(ORDINARY_INDEX), "ordinary network", color="k", ls="--")
    highest = max((d.max() for _, d in curves.values() if np.isfinite(d).all()), default=1.0)
    axes.set_yscale("log")
    axes.set_ylim(1e-3 * highest, 2 * highest)
    axes.grid(alpha=0.3)


def _plot_density(
    axes: Axes, curve: tuple[np.ndarray, np.ndarray] | None, label: str, **style: Any
) -> None:
    """A curve, a vertical line for a constant, or the label alone where nothing is known."""
    if curve is None:
        axes.plot([], [], label=f"{label} (not recorded)", **style)
    elif np.isfinite(curve[1]).all():
        axes.plot(*curve, label=label, **style)
    else:
        axes.axvline(curve[0].item(), label=f"{label} (all {curve[0].item():.3g})", **style)


@contextmanager
def _outputs(network: nn.Module, layers: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """The output of each layer in the next call, if the layer is called as a module."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for layer in layers:

        def keep(module: nn.Module, args: Any, output: Any, layer: str = layer) -> None:
            outputs[layer] = next(tensors_in([output]))

        handles.append(network.get_submodule(layer).register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _pick(tensor: Tensor) -> np.ndarray:
    """At most ``MAX_VALUES`` values, evenly picked, in float64."""
    flat = real_numbers(tensor.detach()).flatten()
    step = math.ceil(flat.numel() / MAX_VALUES)
    return flat[::step].double().cpu().numpy()
