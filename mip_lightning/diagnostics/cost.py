"""What the primary network costs at each gamma: counted FLOPs and measured time."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mip_lightning.diagnostics._style import symbol
from mip_lightning.hypernetworks.gamma_argument import GammaArgument
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.utilities.nested import Inputs, as_arguments, tensors_in


class PrimaryCost:
    """Measures forward passes of the primary as an ordinary network in evaluation mode.

    What the hypernetwork costs is not in it: a network that is exported at one gamma has none. The
    cost does not depend on the values of weights, so it is measured with those at one gamma.

    Args:
        model: The model.
        inputs: What the primary takes: its samples count.
    """

    def __init__(self, model: HyperModel, inputs: Inputs) -> None:
        self._network = model.materialize(model.prior.grid(1)).eval()
        self._args, self._kwargs = as_arguments(inputs)
        self._gamma_argument = GammaArgument(self._network)
        self._num_samples = len(next(tensors_in([inputs])))

    @torch.no_grad()
    def flops(self, gamma: Float[Tensor, " D"]) -> float:
        """FLOPs for each sample, counted by PyTorch as it runs.

        A multiplication and an addition count as two. Convolutions, matrix products and attention
        are counted; interpolation, pooling, biases and activations are not.

        Args:
            gamma: One draw.
        """
        with FlopCounterMode(display=False) as counter:
            self._run(gamma)
        return float(counter.get_total_flops()) / self._num_samples

    @torch.no_grad()
    def milliseconds(self, gammas: Float[Tensor, "n D"], rounds: int = 15) -> list[float]:
        """Wall time for each sample at each gamma, in milliseconds: medians.

        They run in turn, so that whatever else the machine does meets them all alike.

        Args:
            gammas: The draws.
            rounds: Number of times, after one that does not count.
        """
        times: list[list[float]] = [[] for _ in gammas]
        for _ in range(rounds + 1):
            for gamma, taken in zip(gammas, times, strict=True):
                _wait()
                begin = time.perf_counter()
                self._run(gamma)
                _wait()
                taken.append((time.perf_counter() - begin) * 1e3)
        return [statistics.median(taken[1:]) / self._num_samples for taken in times]

    def _run(self, gamma: Float[Tensor, " D"]) -> None:
        self._network(
            *self._args, **self._gamma_argument.merge_into(self._args, self._kwargs, gamma)
        )


def pareto_front(
    costs: Sequence[float], values: Sequence[float], higher_is_better: bool
) -> list[bool]:
    """Whether each point is on the front: no other is as good for less, or better for as much.

    Args:
        costs: What each costs.
        values: How good each is; NaN is never on the front.
        higher_is_better: Whether large values are good.
    """
    sign = 1.0 if higher_is_better else -1.0
    goods = [sign * value for value in values]

    def beaten(cost: float, good: float) -> bool:
        return any(
            c <= cost and g >= good and (c < cost or g > good)
            for c, g in zip(costs, goods, strict=True)
        )

    return [
        good == good and not beaten(cost, good) for cost, good in zip(costs, goods, strict=True)
    ]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


FLOPS, MILLISECONDS, ON_FRONT = "flops", "milliseconds", "on_pareto_front"


def plot_cost(rows: Sequence[Mapping[str, Any]], gammas: Sequence[str], metric: str) -> Figure:
    """The metric against FLOPs and against time, each point colored by gamma.

    Args:
        rows: As in the CSV file.
        gammas: Name of each dimension of gamma; the first gives the color.
        metric: Name of the metric.
    """
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    front = sorted((row for row in rows if row[ON_FRONT]), key=lambda row: row[FLOPS])
    left.plot(
        [row[FLOPS] / 1e9 for row in front],
        [row[metric] for row in front],
        color="gray",
        ls="--",
        label="Pareto front",
        zorder=0,
    )
    _points(left, rows, [row[FLOPS] / 1e9 for row in rows], gammas[0], metric)
    left.set_xlabel("GFLOPs of the primary for a sample")
    left.legend(fontsize="small")
    points = _points(right, rows, [row[MILLISECONDS] for row in rows], gammas[0], metric)
    right.set_xlabel("wall time of the primary for a sample, ms")
    figure.colorbar(points, ax=right, label=symbol(gammas[0]))
    return figure


def _points(
    axes: Axes, rows: Sequence[Mapping[str, Any]], x: Sequence[float], gamma: str, metric: str
) -> Any:
    word = metric.replace("_", " ")
    axes.set_ylabel(word)
    axes.set_title(f"{word} against cost")
    axes.grid(alpha=0.3)
    color = [row[gamma] for row in rows]
    scale = Normalize(min(color), max(color))
    return axes.scatter(x, [row[metric] for row in rows], c=color, norm=scale, cmap="viridis")
