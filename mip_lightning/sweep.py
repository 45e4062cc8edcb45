"""Sweep of evaluation over a grid of gamma: each metric at each gamma, in the mean, at its best."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


class Curve(NamedTuple):
    """One metric over the grid.

    Attributes:
        values: The metric at each of n values of gamma.
        higher_is_better: Which end is the better one; ``None`` where there is none.
    """

    values: Float[Tensor, " n"]
    higher_is_better: bool | None

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The metric averaged over gamma."""
        return self.values.mean()

    @property
    def best(self) -> int | None:
        """Index of the best gamma; ``None`` where the metric has no better end."""
        if self.higher_is_better is None:
            return None
        index = self.values.argmax() if self.higher_is_better else self.values.argmin()
        return int(index)


class GammaSweep(nn.Module):
    """Accumulates the loss and a task's metrics for each gamma of a grid.

    Args:
        grid: The values of gamma, shape ``(n, D)``.
        metrics: The task's metrics by name; each gamma gets copies of its own.
    """

    grid: Float[Tensor, "n D"]

    def __init__(self, grid: Float[Tensor, "n D"], metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.register_buffer("grid", grid, persistent=False)
        self._losses = nn.ModuleList(MeanMetric() for _ in grid)
        self._metrics = nn.ModuleDict(
            {name: nn.ModuleList(metric.clone() for _ in grid) for name, metric in metrics.items()}
        )

    def update(
        self,
        index: int,
        loss: Float[Tensor, ""],
        batch_size: int,
        prediction: Tensor | None,
        target: Tensor | None,
    ) -> None:
        """Add one batch at the gamma of this index.

        Args:
            index: Position of gamma in the grid.
            loss: The batch's mean loss.
            batch_size: Weight of this loss in the mean.
            prediction: First argument of the metrics' ``update``.
            target: Second argument of the metrics' ``update``.
        """
        _metric(self._losses, index).update(loss, batch_size)
        if prediction is not None:
            for metrics in self._metrics.values():
                _metric(metrics, index).update(prediction, target)

    def compute(self) -> dict[str, Curve]:
        """The curves of the loss and of each metric, over all ranks, then start anew."""
        curves = {"loss": self._curve(self._losses, higher_is_better=False)}
        for name, metrics in self._metrics.items():
            curves[name] = self._curve(metrics, _metric(metrics, 0).higher_is_better)
        return curves

    @staticmethod
    def _curve(metrics: nn.Module, higher_is_better: bool | None) -> Curve:
        assert isinstance(metrics, nn.ModuleList)
        values = []
        for index in range(len(metrics)):
            metric = _metric(metrics, index)
            values.append(metric.compute().float())
            metric.reset()
        return Curve(torch.stack(values), higher_is_better)


def _metric(metrics: nn.Module, index: int) -> Metric:
    assert isinstance(metrics, nn.ModuleList)
    metric = metrics[index]
    assert isinstance(metric, Metric)
    return metric
