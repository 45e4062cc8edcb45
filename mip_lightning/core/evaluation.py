"""Evaluation: what validation or test measures at each gamma of a grid, and its result."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric

from mip_lightning.core._primary_cache import PrimaryCache
from mip_lightning.core.batches import batch_size
from mip_lightning.core.metrics import LabelledMetric, SeenNaN
from mip_lightning.core.outputs import StepOutput
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.utilities.precision import float32_by_default

Stage: TypeAlias = Literal["val", "test"]
"""Validation or test, as names of logged values begin."""

LOSS = "loss"
"""The name of the loss among the metrics."""


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


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation has measured.

    Attributes:
        stage: ``val`` or ``test``.
        names: Name of each dimension of gamma.
        grid: The values of gamma, shape ``(n, D)``, on the CPU.
        curves: The loss and each metric of the task over the grid, by name.
        extra: The metrics that are not swept, by name.
        references: What figures show next to a metric, by its name: a label and a value.
        label_names: Names of labels, where the data have them.
        overall: Each metric with every sample at the gamma that comes with it, by name; ``None``
            where gamma is swept.
    """

    stage: Stage
    names: tuple[str, ...]
    grid: Float[Tensor, "n D"]
    curves: Mapping[str, Curve]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    references: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=dict)
    overall: Mapping[str, Tensor] | None = None

    def scalars(self) -> dict[str, Tensor]:
        """The numbers that are logged, by name.

        ``val_accuracy`` is the mean over gamma, ``val_accuracy_best`` the value at the best gamma,
        ``val_accuracy_best_gamma`` this gamma, where it has one dimension. With every sample at its
        own gamma, ``val_accuracy`` and ``val_accuracy_best``, by which checkpoints are chosen, are
        both the metric of all samples.
        """
        scalars: dict[str, Tensor] = {}
        for name, value in (self.overall or {}).items():
            scalars |= dict.fromkeys((f"{self.stage}_{name}", f"{self.stage}_{name}_best"), value)
        for name, curve in self.curves.items():
            key = f"{self.stage}_{name}"
            scalars.setdefault(key, curve.mean)
            if curve.best is not None:
                scalars[f"{key}_best"] = curve.values[curve.best]
                if len(self.names) == 1:
                    gamma = self.grid[curve.best, 0]
                    scalars[f"{key}_best_gamma"] = gamma.to(curve.values.device)
        return {**scalars, **{f"{self.stage}_{name}": value for name, value in self.extra.items()}}


class GammaMetrics:
    """The loss and a task's metrics at one gamma.

    Not a module, so that metrics keep their own precision: in bfloat16 a sum of ones ends at 256.

    Args:
        metrics: The task's metrics by name, which are copied.

    Raises:
        UsageError: If a metric has an impossible name.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        if LOSS in metrics:
            raise UsageError("a metric is called 'loss', which the loss itself is: rename it")
        self._better = {name: m.higher_is_better for name, m in metrics.items()}
        self._count = SumMetric()
        # A loss that is NaN is shown as such, not left out of the mean.
        self._loss = MeanMetric(nan_strategy="disable")
        self._nan = SeenNaN()
        self._metrics = collect_metrics({name: m.clone() for name, m in metrics.items()})

    def reset(self, device: torch.device) -> None:
        """Start again, whatever an interrupted evaluation has left."""
        for metric in (self._count, self._loss, self._nan, self._metrics):
            metric.to(device).reset()

    def update(self, output: StepOutput, size: int) -> None:
        """Add a batch.

        Args:
            output: The batch's mean loss, and what the metrics take.
            size: Number of samples in it.
        """
        self._nan.update(output.has_nan())
        with float32_by_default():  # a step's own may be bfloat16
            self._count.update(size)
            # A value for each sample and not a weight: torchmetrics 1.9 drops weights here.
            self._loss.update(output.loss.expand(size))
            if output.prediction is not None:
                self._metrics.update(output.prediction, output.target)

    def compute(self) -> dict[str, Curve]:
        """Each metric over all ranks, as the point of a curve; NaN without a sample."""
        if not self._count.compute():
            nothing = torch.full((1,), torch.nan, device=self._count.device)
            better = {LOSS: False, **self._better}
            return {name: Curve(nothing, end) for name, end in better.items()}
        points = {LOSS: Curve(self._loss.compute().float().reshape(1), higher_is_better=False)}
        nan = self._nan.compute().reshape(1)
        for name in self._better:
            metric = self._metrics[name]
            value = metric.compute().float().reshape(1)
            point = Curve(value, metric.higher_is_better, _by_label(metric))
            points[name] = point.without(nan)
        return points


class Evaluation:
    """One stage's evaluation: its grid of gamma, the weights there, its metrics and its result.

    Args:
        stage: ``val`` or ``test``.
        model: The model.
        grid: The values of gamma.
        metrics: The task's metrics by name; each gamma gets copies of its own.
        extra_metrics: Metrics that are not swept.
        references: The label, and the extra metric, that figures show next to a metric, by its
            name.

    Raises:
        UsageError: If a metric has an impossible name.

    Attributes:
        primaries: The primary at any gamma, with weights that are predicted once an epoch.
        result: What the last evaluation has measured; ``None`` before the first has ended.
    """

    def __init__(
        self,
        stage: Stage,
        model: HyperModel,
        grid: Float[Tensor, "n D"],
        metrics: Mapping[str, Metric],
        extra_metrics: Mapping[str, Metric],
        references: Mapping[str, tuple[str, str]],
    ) -> None:
        self.stage = stage
        self._model = model
        self.names = model.prior.names
        self.grid = grid
        self.primaries = PrimaryCache(model)
        self.result: EvaluationResult | None = None
        self._at_gamma = [GammaMetrics(metrics) for _ in grid]
        self._extra = collect_metrics(extra_metrics)
        self._references = references

    def start(self, device: torch.device) -> None:
        """Start again, whatever an interrupted evaluation has left."""
        for metrics in self._at_gamma:
            metrics.reset(device)
        self._extra.to(device).reset()
        self.primaries.start()

    def update(self, batch: Any, step_output: Callable[[Any, PrimaryAtGamma], StepOutput]) -> None:
        """Add a batch at each gamma, and to the extra metrics.

        Args:
            batch: What the data loader gives.
            step_output: What the task makes of a batch and the primary.
        """
        size = batch_size(batch)
        at_grid = self.primaries(self.grid)
        for metrics, primary in zip(self._at_gamma, at_grid, strict=True):
            metrics.update(step_output(batch, primary), size)
        self._extra.update(batch, self.primaries)

    def finish(self, label_names: Mapping[int, str]) -> EvaluationResult:
        """Compute the metrics over all ranks.

        Args:
            label_names: Names of labels.
        """
        self.primaries.stop()
        with warnings.catch_warnings():
            # A rank all of whose samples are repeated ones has none of its own.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")
            points = [metrics.compute() for metrics in self._at_gamma]
            extra = self._extra.compute()
        curves = {name: _joined([point[name] for point in points]) for name in points[0]}
        references = {
            name: (label, float(extra[source]))
            for name, (label, source) in self._references.items()
            if source in extra
        }
        self.result = EvaluationResult(
            self.stage, self.names, self.grid, curves, extra, references, label_names
        )
        return self.result


def collect_metrics(metrics: Mapping[str, Metric]) -> MetricCollection:
    """Metrics in one collection; each keeps states of its own.

    Raises:
        UsageError: If a name cannot be that of a metric.
    """
    try:
        return MetricCollection(dict(metrics), compute_groups=False)
    except KeyError as error:  # torch's containers take no dots, and no names of their methods
        raise UsageError(f"a metric has an impossible name ({error.args[0]}): rename it") from error


def _by_label(metric: Metric) -> Mapping[int, Float[Tensor, "1"]]:
    """Each label's value, on the CPU."""
    if not isinstance(metric, LabelledMetric):
        return {}
    with metric.sync_context(should_sync=metric.sync_on_compute):
        found = metric.compute_by_label()
    return {label: value.reshape(1).cpu() for label, value in found.items()}


def _joined(points: Sequence[Curve]) -> Curve:
    """The curve of points; NaN at a gamma where a label is missing."""
    labels = sorted({label for point in points for label in point.by_label})
    missing = torch.full((1,), torch.nan)
    return Curve(
        torch.cat([point.values for point in points]),
        points[0].higher_is_better,
        {k: torch.cat([point.by_label.get(k, missing) for point in points]) for k in labels},
    )
