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

MAX_VALUES = 4000
"""Values, evenly picked, that a density is estimated from."""


ORDINARY_INDEX = -1


MAX_COLUMNS = 6
"""More layers than these are drawn as every n-th one."""


NUM_POINTS = 200
"""Points at which a density is evaluated."""


Panel: TypeAlias = tuple[str, str]
"""``weights`` or ``activations``, and the name of the layer."""


Curves: TypeAlias = dict[int, tuple[np.ndarray, np.ndarray]]
"""Index of the gamma, or -1 for the ordinary network, to values and their density."""


def collect(
    module: HyperLightningModule, batch: Any, grid: Float[Tensor, "n D"]
) -> dict[Panel, dict[int, np.ndarray]]:
    """Weights and activations at each gamma (by index) and of the ordinary network (by -1).

    Args:
        module: The module; its modes and buffers stay as they are.
        batch: What the activations are those of.
        grid: The gammas.
    """
    with torch.no_grad(), eval_mode(module):
        return _collect(module, batch, grid)


def _collect(
    module: HyperLightningModule, batch: Any, grid: Float[Tensor, "n D"]
) -> dict[Panel, dict[int, np.ndarray]]:
    model = module.model
    matrices = {n: s for n, s in model.layout.shapes.items() if len(s) > 1}
    layers = {name.rpartition(".")[0]: name for name in matrices}
    samples: dict[Panel, dict[int, np.ndarray]] = defaultdict(dict)
    gammas = grid.to(module.device)
    (call, *_) = module.primary_calls(batch, gammas[:1])
    ordinary = model.original_primary().eval()
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
    """Gaussian kernel densities over the range of all samples; none where all values are one."""
    from scipy.stats import gaussian_kde

    low = min(float(np.quantile(values, 0.002)) for values in samples.values())
    high = max(float(np.quantile(values, 0.998)) for values in samples.values())
    points = np.linspace(low, high, NUM_POINTS)
    return {
        index: (points, gaussian_kde(values)(points))
        for index, values in samples.items()
        if np.ptp(values) > 1e-6 * max(abs(low), abs(high))
    }


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
            _plot_panel(panels[row][column], densities.get((of, layer), {}), names, grid)
            panels[row][column].set_title(f"{of} of {layer}", fontsize="medium")
            panels[row][column].set_xlabel("weight" if of == "weights" else "activation")
        panels[row][0].set_ylabel("density")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure


def _plot_panel(
    axes: Axes, curves: Curves, names: Sequence[str], grid: Float[Tensor, "n D"]
) -> None:
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(grid)))
    highest = 0.0
    for index, color in enumerate(colors):
        label = ", ".join(
            f"{symbol(name)} = {value:.3g}"
            for name, value in zip(names, grid[index].tolist(), strict=True)
        )
        values, density = curves.get(index, (np.empty(0), np.empty(0)))
        label = label if len(label) < 40 else f"plot_distributions {index}"
        label += "" if len(values) else " (constant)"
        axes.plot(values, density, color=color, label=label)
        highest = max([highest, *density.tolist()])
    values, density = curves.get(ORDINARY_INDEX, (np.empty(0), np.empty(0)))
    axes.plot(values, density, "k--", label="ordinary network")
    highest = max([highest, *density.tolist()])
    axes.set_yscale("log")
    axes.set_ylim(1e-3 * highest or None, 2 * highest or None)
    axes.grid(alpha=0.3)


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
    flat = tensor.detach().flatten()
    step = math.ceil(flat.numel() / MAX_VALUES)
    return flat[::step].double().cpu().numpy()
