"""Sweep of evaluation over a grid of gamma: each metric at each gamma, in the mean, at its best."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from mip_lightning.core._minibatch import StepOutput
from mip_lightning.errors import UsageError
from mip_lightning.utilities.finite import has_nan
from mip_lightning.utilities.precision import float32_by_default


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

    def without(self, nans: Bool[Tensor, " n"]) -> "Curve":
        """The same, but NaN at some gamma.

        Args:
            nans: Where.
        """
        by_label = {
            label: values.masked_fill(nans.to(values.device), torch.nan)
            for label, values in self.by_label.items()
        }
        return self._replace(values=self.values.masked_fill(nans, torch.nan), by_label=by_label)

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


def restart(metrics: Iterable[Metric], device: torch.device) -> None:
    """Reset metrics on a device, including leftovers of an interrupted evaluation.

    For metrics that are not part of a module, which would take them to its precision: in bfloat16 a
    sum of ones ends at 256.
    """
    for metric in metrics:
        metric.to(device).reset()


class GammaSweep:
    """Accumulates the loss and a task's metrics for each gamma of a grid.

    It is not a module, so that the grid and the metrics keep their own precision.

    Args:
        grid: The values of gamma, shape ``(n, D)``.
        metrics: The task's metrics by name; each gamma gets copies of its own.

    Raises:
        UsageError: If a metric is called ``loss``.
    """

    def __init__(self, grid: Float[Tensor, "n D"], metrics: Mapping[str, Metric]) -> None:
        if "loss" in metrics:
            raise UsageError("a metric is called 'loss', which the loss itself is: rename it")
        self.grid = grid
        self._metrics: dict[str, list[Metric]] = {
            # A loss that is not a number is shown as such, not left out of the mean.
            "loss": [MeanMetric(nan_strategy="disable") for _ in grid],
            **{name: [metric.clone() for _ in grid] for name, metric in metrics.items()},
        }
        self._nans = [SeenNaN() for _ in grid]

    def update(self, index: int, output: StepOutput, batch_size: int) -> None:
        """Add one batch at the gamma of this index.

        Args:
            index: Position of gamma in the grid.
            output: The batch's mean loss, and what the metrics take.
            batch_size: Weight of this loss in the mean.
        """
        self._nans[index].update(output.has_nan())
        with float32_by_default():  # a step's own may be bfloat16
            for name, copies in self._metrics.items():
                if name == "loss":
                    # A value for each sample and not a weight: torchmetrics 1.9 drops weights here.
                    copies[index].update(output.loss.expand(batch_size))
                elif output.prediction is not None:
                    copies[index].update(output.prediction, output.target)

    def restart(self, device: torch.device) -> None:
        """Reset all metrics on a device, including leftovers of an interrupted evaluation."""
        self.grid = self.grid.to(device)
        restart(self._nans, device)
        for copies in self._metrics.values():
            restart(copies, device)

    def compute(self) -> dict[str, Curve]:
        """The curves of the loss and of each metric, over all ranks."""
        curves = {}
        with warnings.catch_warnings():
            # A rank all of whose samples are repeated ones has none of its own.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")
            nans = torch.stack([metric.compute() for metric in self._nans])
            for name, copies in self._metrics.items():
                values = torch.stack([metric.compute().float() for metric in copies])
                better = False if name == "loss" else copies[0].higher_is_better
                curve = Curve(values, better, _by_label(copies))
                curves[name] = curve if name == "loss" else curve.without(nans)
        return curves


class SeenNaN(Metric):
    """Whether a prediction was NaN: an accuracy is a number for such a one too."""

    full_state_update = False
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, is_nan: Bool[Tensor, ""]) -> None:
        self.count += is_nan

    @override
    def compute(self) -> Bool[Tensor, ""]:
        return self.count > 0


class NaNAware(Metric):
    """A metric that is NaN once a prediction was.

    Args:
        metric: The metric.
    """

    full_state_update = False

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self.nans = SeenNaN()

    @override
    def update(self, prediction: Tensor, target: Any) -> None:
        self.nans.update(has_nan(prediction))
        self.metric.update(prediction, target)

    @override
    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value.float().masked_fill(self.nans.compute(), torch.nan)

    @override
    def reset(self) -> None:
        super().reset()
        self.metric.reset()
        self.nans.reset()


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
