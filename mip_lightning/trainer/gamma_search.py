"""Which gamma is best on the validation data: for all of it, for each label, for each subject."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from mip_lightning.core.batches import batch_size, take_samples
from mip_lightning.core.evaluation import LOSS, Curve, GammaMetrics
from mip_lightning.core.metrics import LabelledMetric
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import StepOutput
from mip_lightning.core.without_logging import without_logging
from mip_lightning.diagnostics.cost import PrimaryCost
from mip_lightning.errors import UsageError
from mip_lightning.trainer._optimum import (
    OptimalPoint,
    Point,
    best_of,
    best_point,
    starting_points,
)
from mip_lightning.utilities.files import replacing

SelectBy: TypeAlias = Literal["all", "label", "subject"]


class Selected(NamedTuple):
    """The best gamma of something, shape ``(D,)``, and the metric there."""

    gamma: Point
    value: float


class FlopsBudget:
    """Whether the primary takes few enough FLOPs at a gamma.

    Args:
        model: The module.
        batch: A batch on the module's device, of whose samples the FLOPs are.
        max_flops: The most that are allowed, for a sample.
        grid: Values of gamma; at least one must be cheap enough.

    Raises:
        UsageError: If none is.
    """

    def __init__(
        self, model: HyperLightningModule, batch: Any, max_flops: float, grid: Sequence[Point]
    ) -> None:
        (call, *_) = model.primary_calls(batch, torch.tensor([grid[0]]))
        self._cost = PrimaryCost(model.model, call)
        self.max_flops = max_flops
        cheapest = min(map(self.flops, grid))
        if not cheapest <= max_flops:
            raise UsageError(
                f"max_flops={max_flops:g}: the primary takes {cheapest:.4g} FLOPs for a sample at"
                " the cheapest gamma; allow as many"
            )

    def flops(self, gamma: Point) -> float:
        """FLOPs of the primary for a sample."""
        return self._cost.flops(torch.tensor(gamma))

    def __call__(self, gamma: Point) -> bool:
        """Whether they are few enough."""
        return self.flops(gamma) <= self.max_flops


class GammaSearch:
    """Evaluates a module's metric at gamma, and looks for the best.

    It looks in the levels of the prior's quantiles: in equal steps of the logarithm where the prior
    is uniform in it, and at the values alone where there are finitely many. Of one dimension it
    starts from a grid of these levels, of several from points that cover them and their corners.

    Args:
        model: The module, in evaluation mode.
        batches: The validation batches, on the module's device.
        metric: Name of the metric, or ``loss``.
        grid_size: Number of values of gamma from which the search starts; of D dimensions D times
            as many, and the corners.
        tolerance: How close to come to the best gamma, in levels.
        report: Called with a line of text before each evaluation.
        allowed: Whether a gamma may be chosen; what may not is not evaluated.

    Raises:
        UsageError: If there is no batch or no such metric, or it has no better end.
    """

    def __init__(
        self,
        model: HyperLightningModule,
        batches: Sequence[Any],
        metric: str,
        grid_size: int,
        tolerance: float,
        report: Callable[[str], None] = lambda line: None,
        allowed: Callable[[Point], bool] = lambda gamma: True,
    ) -> None:
        if not batches:
            raise UsageError("there are no validation batches, on which gamma is selected")
        metrics = model.configure_metrics()
        if metric not in (LOSS, *metrics):
            raise UsageError(
                f"metric={metric!r}: {type(model).__name__} has {', '.join((LOSS, *metrics))}"
            )
        better = False if metric == LOSS else metrics[metric].higher_is_better
        if better is None:
            raise UsageError(f"metric={metric!r} has no better end: choose another one")
        prior = model.model.prior
        self.model = model
        self.batches = batches
        self.metric = metric
        self.higher_is_better = better
        of_parts = [part.grid_levels(grid_size) for part in prior.parts for _ in range(part.dim)]
        self._ends = [(float(levels[0]), float(levels[-1])) for levels in of_parts]
        self.levels: list[Point] = (
            [(level,) for level in prior.grid_levels(len(prior.grid(grid_size))).tolist()]
            if prior.dim == 1
            else starting_points(prior.dim, grid_size * prior.dim)
        )
        self.tolerance = tolerance
        self.report = report
        self.allowed = allowed
        self._values: dict[Point, dict[str, float]] = {}
        self._samples: dict[str, Any] = {}

    @property
    def grid(self) -> list[Point]:
        """The values of gamma from which the search starts."""
        return [self._gamma(level) for level in self.levels]

    def _gamma(self, levels: Point) -> Point:
        """Gamma at levels.

        Of several dimensions they are shares of the way between the ends of each one's grid: a
        prior without bounds is infinite at the levels 0 and 1.
        """
        if len(levels) > 1:
            pairs = zip(self._ends, levels, strict=True)
            levels = tuple(low + share * (high - low) for (low, high), share in pairs)
        return tuple(self.model.model.prior.quantile(torch.tensor([levels]))[0].tolist())

    def select(self, by: SelectBy) -> dict[str, Selected]:
        """The best gamma for ``all``, for each label, or for each subject, by name.

        Returns:
            The best of each for which the metric is a number somewhere.

        Raises:
            UsageError: If the metric does not know labels, the samples have no names, or the metric
                is nowhere a number.
        """
        measure = {"all": self._overall, "label": self._by_label, "subject": self._by_subject}[by]

        def values(gamma: Point) -> dict[str, float]:
            if gamma not in self._values:
                number = len(self._values) + 1
                self.report(f"{self.metric} at gamma = {_written(gamma)} (number {number})")
                draw = torch.tensor([gamma])
                self._values[gamma] = measure(draw) if self.allowed(gamma) else {}
            return self._values[gamma]

        self._values.clear()
        names = list(dict.fromkeys(name for gamma in self.grid for name in values(gamma)))

        def value(name: str, gamma: Point) -> float:
            if by == "subject" and gamma not in self._values and self.allowed(gamma):
                self.report(f"{self.metric} of {name} at gamma = {_written(gamma)}")
                return self._of_subject(name, torch.tensor([gamma]))
            return values(gamma).get(name, math.nan)

        selected = {}
        for name in names:
            levels, best = self._best(lambda point, name=name: value(name, self._gamma(point)))  # type: ignore[misc]
            if not math.isnan(best):
                selected[name] = Selected(self._gamma(levels), best)
        if not selected:
            raise UsageError(f"metric={self.metric!r} is not a number at any gamma")
        return selected

    def _best(self, function: Callable[[Point], float]) -> OptimalPoint:
        if len(self.levels[0]) > 1:
            return best_point(function, self.levels, self.higher_is_better, self.tolerance)
        line = [level for (level,) in self.levels]
        level, value = best_of(
            lambda level: function((level,)), line, self.higher_is_better, self.tolerance
        )
        return OptimalPoint((level,), value)

    def _overall(self, gamma: Float[Tensor, "1 D"]) -> dict[str, float]:
        return {"all": float(self._curve(gamma).values)}

    def _by_label(self, gamma: Float[Tensor, "1 D"]) -> dict[str, float]:
        metrics = self.model.configure_metrics()
        if not isinstance(metrics.get(self.metric), LabelledMetric):
            raise UsageError(f"by='label': the metric {self.metric!r} does not tell labels apart")
        names = self.model.label_names
        by_label = self._curve(gamma).by_label
        return {names.get(label, str(label)): float(value) for label, value in by_label.items()}

    def _by_subject(self, gamma: Float[Tensor, "1 D"]) -> dict[str, float]:
        if self.metric == LOSS:
            raise UsageError("by='subject': the loss is that of batches; choose a metric")
        values = {}
        for batch in self.batches:
            size = batch_size(batch)
            for index, name in enumerate(self.model.sample_names(batch)):
                self._samples[name] = take_samples(batch, slice(index, index + 1), size)
                values[name] = self._of_subject(name, gamma)
        return values

    def _of_subject(self, name: str, gamma: Float[Tensor, "1 D"]) -> float:
        """The metric of one subject by itself."""
        (output,) = self._outputs(gamma, [self._samples[name]])
        return float(self._metric([(output, 1)]).values)

    def _curve(self, gamma: Float[Tensor, "1 D"]) -> Curve:
        """The metric of all batches at one gamma."""
        sizes = map(batch_size, self.batches)
        return self._metric(zip(self._outputs(gamma, self.batches), sizes, strict=True))

    def _metric(self, outputs: Iterable[tuple[StepOutput, int]]) -> Curve:
        """The metric of outputs, each of so many samples: one point of a curve."""
        metrics = GammaMetrics(
            {n: m for n, m in self.model.configure_metrics().items() if n == self.metric}
        )
        metrics.reset(self.model.device)
        for output, size in outputs:
            metrics.update(output, size)
        return metrics.compute()[self.metric]

    def _outputs(self, gamma: Float[Tensor, "1 D"], batches: Sequence[Any]) -> Iterator[StepOutput]:
        primary = self.model.model.at(gamma, check=False)
        for batch in batches:
            with without_logging(self.model):
                output = self.model.step_output(batch, primary)
            yield output


def _written(gamma: Point) -> str:
    return ", ".join(f"{value:.4f}" for value in gamma)


def write_selected(
    path: Path,
    selected: Mapping[str, Selected],
    by: SelectBy,
    metric: str,
    ckpt_path: str | None,
    max_flops: float | None = None,
) -> None:
    """Write what was selected as YAML, which ``predict`` and ``export`` take as their gamma.

    Args:
        path: The file.
        selected: The best gamma of ``all``, or of each label or subject.
        by: Of which of them.
        metric: Name of the metric.
        ckpt_path: The checkpoint.
        max_flops: The most FLOPs that were allowed; ``None`` for any number.
    """
    # In the digits of float32, in which it was evaluated: rounded it may leave the prior's support.
    exact = {n: [float(str(np.float32(v))) for v in best.gamma] for n, best in selected.items()}
    gammas = {name: v[0] if len(v) == 1 else v for name, v in exact.items()}
    values = {name: round(best.value, 6) for name, best in selected.items()}
    content = {
        "by": by,
        "gamma": gammas["all"] if by == "all" else gammas,
        "metric": metric,
        "value": values["all"] if by == "all" else values,
        "checkpoint": ckpt_path,
        **({} if max_flops is None else {"max_flops": max_flops}),
    }
    with replacing(path) as unfinished:
        unfinished.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
