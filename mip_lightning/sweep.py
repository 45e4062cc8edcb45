"""Sweep of evaluation over a grid of gamma: each metric at each gamma, in the mean, at its best."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from mip_lightning.errors import UsageError


class Curve(NamedTuple):
    """One metric over the grid.

    Attributes:
        values: The metric at each of n values of gamma.
        higher_is_better: Which end is the better one; ``None`` where there is none.
        by_label: The same for each label of a ``LabelledMetric``; NaN where a label is missing.
    """

    values: Float[Tensor, " n"]
    higher_is_better: bool | None
    by_label: Mapping[int, Float[Tensor, " n"]] = MappingProxyType({})

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The metric averaged over gamma."""
        return self.values.mean()

    @property
    def best(self) -> int | None:
        """Index of the best gamma; ``None`` where the metric has no better end."""
        return self._best(self.values)

    @property
    def best_by_label(self) -> dict[int, int]:
        """Index of the best gamma for each label."""
        best = {label: self._best(values) for label, values in self.by_label.items()}
        return {label: index for label, index in best.items() if index is not None}

    def _best(self, values: Float[Tensor, " n"]) -> int | None:
        if self.higher_is_better is None:
            return None
        if self.higher_is_better:
            return int(values.nan_to_num(nan=-math.inf).argmax())
        return int(values.nan_to_num(nan=math.inf).argmin())


class LabelledMetric(Metric):
    """A metric that is known for each label too, as the Dice of each structure."""

    @abstractmethod
    def compute_by_label(self) -> Mapping[int, Float[Tensor, ""]]:
        """The metric of each label that was seen, over what ``compute`` is computed of.

        Called where the states are those of all ranks.
        """


class GammaSweep(nn.Module):
    """Accumulates the loss and a task's metrics for each gamma of a grid.

    Args:
        grid: The values of gamma, shape ``(n, D)``.
        metrics: The task's metrics by name; each gamma gets copies of its own.

    Raises:
        UsageError: If a metric is called ``loss``.
    """

    grid: Float[Tensor, "n D"]

    def __init__(self, grid: Float[Tensor, "n D"], metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        if "loss" in metrics:
            raise UsageError("a metric is called 'loss', which the loss itself is: rename it")
        self.register_buffer("grid", grid, persistent=False)
        self._metrics: dict[str, list[Metric]] = {
            # A loss that is not a number is shown as such, not left out of the mean.
            "loss": [MeanMetric(nan_strategy="disable") for _ in grid],
            **{name: [metric.clone() for _ in grid] for name, metric in metrics.items()},
        }
        self.metrics = nn.ModuleDict(  # moves the metrics with the module
            {name: nn.ModuleList(copies) for name, copies in self._metrics.items()}
        )

    def update(
        self,
        index: int,
        loss: Float[Tensor, ""],
        batch_size: int,
        prediction: Tensor | None,
        target: Any,
    ) -> None:
        """Add one batch at the gamma of this index.

        Args:
            index: Position of gamma in the grid.
            loss: The batch's mean loss.
            batch_size: Weight of this loss in the mean.
            prediction: First argument of the metrics' ``update``.
            target: Second argument of the metrics' ``update``.
        """
        for name, copies in self._metrics.items():
            if name == "loss":
                # A value for each sample and not a weight: torchmetrics 1.9 drops weights here.
                copies[index].update(loss.expand(batch_size))
            elif prediction is not None:
                copies[index].update(prediction, target)

    def reset(self) -> None:
        """Start anew, whatever an evaluation that was broken off has left."""
        for copies in self._metrics.values():
            for metric in copies:
                metric.reset()

    def compute(self) -> dict[str, Curve]:
        """The curves of the loss and of each metric, over all ranks."""
        curves = {}
        for name, copies in self._metrics.items():
            values = torch.stack([metric.compute().float() for metric in copies])
            better = False if name == "loss" else copies[0].higher_is_better
            curves[name] = Curve(values, better, _by_label(copies))
        return curves


def _by_label(metrics: Sequence[Metric]) -> dict[int, Float[Tensor, " n"]]:
    """Each label's values over gamma."""
    rows: list[Mapping[int, Tensor]] = []
    for metric in metrics:
        if isinstance(metric, LabelledMetric):
            with metric.sync_context(should_sync=metric.sync_on_compute):
                rows.append(metric.compute_by_label())
    labels = sorted({label for row in rows for label in row})
    return {
        label: torch.stack([row.get(label, torch.tensor(torch.nan)).cpu() for row in rows])
        for label in labels
    }
