"""EnsembleMetrics: metrics of the prediction averaged over draws of gamma."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from typing_extensions import override

from mip_lightning.core.metrics import NaNAware
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.tasks.classification.uncertainty import ensemble, entropy, mutual_information
from mip_lightning.utilities.precision import at_least_float32


class EnsembleMetrics(Metric):
    """Metrics of the average over M draws, its mean entropy and mutual information (nats).

    ``compute`` gives each by its name with ``_ensemble``, such as ``accuracy_ensemble``.

    Args:
        gammas: The draws, shape ``(M, D)``.
        metrics: Metrics of log-probabilities and labels, by name.
    """

    full_state_update = False

    def __init__(self, gammas: Float[Tensor, "M D"], metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self._gammas = gammas
        self.of_average = MetricCollection(
            {name: NaNAware(metric) for name, metric in metrics.items()},
            postfix="_ensemble",
            compute_groups=False,
        )
        self.predictive_entropy = MeanMetric(nan_strategy="disable")
        self.mutual_information = MeanMetric(nan_strategy="disable")

    @override
    def update(
        self,
        batch: Sequence[Tensor],
        primaries: Callable[[Float[Tensor, "M D"]], list[PrimaryAtGamma]],
    ) -> None:
        images, labels = batch
        log_probabilities = predictions_at(primaries(self._gammas), images)
        average = ensemble(log_probabilities)
        self.of_average.update(average, labels)
        self.predictive_entropy.update(entropy(average))
        self.mutual_information.update(mutual_information(log_probabilities))

    @override
    def compute(self) -> dict[str, Tensor]:
        return {
            **self.of_average.compute(),
            "predictive_entropy_ensemble": self.predictive_entropy.compute(),
            "mutual_information_ensemble": self.mutual_information.compute(),
        }

    @override
    def reset(self) -> None:
        super().reset()
        for metric in (self.of_average, self.predictive_entropy, self.mutual_information):
            metric.reset()


def predictions_at(
    primaries: Sequence[PrimaryAtGamma], images: Float[Tensor, "B *shape"]
) -> Float[Tensor, "M B C"]:
    """Log-probabilities of a classifier at each of M gamma."""
    logits = torch.stack([primary(images) for primary in primaries])
    return at_least_float32(logits).log_softmax(dim=-1)


def true_classes(batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """The labels of a batch, as a column of predictions; none where it has images alone."""
    has_labels = not isinstance(batch, Tensor) and len(batch) > 1
    return {"label": batch[1]} if has_labels else {}
