"""Evaluation of each sample at its own gamma, reported against gamma."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mip_lightning.core.batches import batch_size, take_samples
from mip_lightning.core.evaluation import Curve, Evaluation, EvaluationResult, GammaMetrics
from mip_lightning.core.gamma_source import GammaSource, gamma_of_batch
from mip_lightning.core.outputs import StepOutput
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma


class OwnGammaEvaluation(Evaluation):
    """Measures each sample at the gamma that comes with it.

    The curves are over the grid too: at each of its values, the metrics of those samples whose
    gamma is nearest to it, in the prior's unit range; NaN where there is none. There is no best
    gamma, for none is chosen.

    Args:
        source: Tells the gamma of a batch.
        metrics: The task's metrics by name.
        options: As those of ``Evaluation``.
    """

    def __init__(self, source: GammaSource, metrics: Mapping[str, Any], **options: Any) -> None:
        super().__init__(metrics=metrics, **options)
        self._source = source
        self._overall = GammaMetrics(metrics)

    @override
    def start(self, device: torch.device) -> None:
        super().start(device)
        self._overall.reset(device)

    @override
    def update(self, batch: Any, step_output: Callable[[Any, PrimaryAtGamma], StepOutput]) -> None:
        prior, size = self._model.prior, batch_size(batch)
        own = prior.check_values(gamma_of_batch(self._source, batch, prior).cpu()).expand(size, -1)
        nearest = self._nearest(own)
        for index in nearest.unique().tolist():
            which = (nearest == index).nonzero()[:, 0].tolist()
            part = take_samples(batch, which, size) if len(which) < size else batch
            gammas = own[which]
            is_one = bool((gammas == gammas[:1]).all())
            primary = self._model.at(gammas[:1] if is_one else gammas, check=False)
            output = step_output(part, primary)
            for metrics in (self._at_gamma[index], self._overall):
                metrics.update(output, len(which))
        self._extra.update(batch, self.primaries)

    @override
    def finish(self, label_names: Mapping[int, str]) -> EvaluationResult:
        result = super().finish(label_names)
        curves = {
            name: curve._replace(higher_is_better=None) for name, curve in result.curves.items()
        }
        overall: dict[str, Curve] = self._overall.compute()
        self.result = replace(
            result, curves=curves, overall={name: c.values[0] for name, c in overall.items()}
        )
        return self.result

    def _nearest(self, gammas: Tensor) -> Tensor:
        prior = self._model.prior
        return torch.cdist(prior.to_unit(gammas), prior.to_unit(self.grid.to(gammas))).argmin(dim=1)
