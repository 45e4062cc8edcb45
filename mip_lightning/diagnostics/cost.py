"""What the primary network costs at each gamma: counted FLOPs and measured time."""

import statistics
import time
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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
