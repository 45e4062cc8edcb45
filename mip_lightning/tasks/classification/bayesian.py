"""Bayesian classification: gamma is a latent draw, the trained weights a posterior's samples."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from mip_lightning.core.evaluation import Stage
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.core.outputs import StepOutput
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.primary_at import PrimaryAtGamma
from mip_lightning.priors import Prior
from mip_lightning.tasks._label_range import LabelRange
from mip_lightning.tasks.classification.ensemble import (
    EnsembleMetrics,
    predictions_at,
    true_classes,
)
from mip_lightning.tasks.classification.uncertainty import (
    NegativeLogLikelihood,
    TopLabelCalibrationError,
    ensemble,
    entropy,
    mutual_information,
)
from mip_lightning.utilities.precision import at_least_float32

ENSEMBLE_SEED = 0
"""Seed of the draws over which test and predict average, so that two tests agree."""

ImagesAndLabels: TypeAlias = Sequence[Tensor]
"""Images ``(B, ...)`` and integer labels ``(B,)``, as PyTorch's loaders collate them."""


class BayesianClassification(HyperLightningModule):
    """Classification with weights predicted from gamma ~ p(gamma).

    Validation and test log, averaged over the grid and at its best gamma, the top-1 accuracy, the
    negative log-likelihood (nats) and the calibration error. Test also logs them for the
    prediction averaged over draws of gamma (``test_accuracy_ensemble``), with the mean predictive
    entropy and mutual information (nats).

    Source: paper, Sections 5.1 and A.2.

    Args:
        primary: A classifier: ``(B, ...)`` to logits ``(B, C)``.
        prior: p(gamma), in the paper N(0, 1) or U(0, 1) over D inputs.
        label_smoothing: Share of the target spread over all classes, in [0, 1), in the loss.
        ensemble_size: M, the number of draws over which test and predict average.
        options: Further arguments of ``HyperLightningModule``.

    Raises:
        UsageError: If ``label_smoothing`` or ``ensemble_size`` is out of range, or as
            ``HyperLightningModule`` raises.
    """

    monitor: ClassVar[str] = "val_accuracy"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        primary: nn.Module,
        prior: Prior,
        *,
        label_smoothing: float = 0.0,
        ensemble_size: int = 20,
        **options: Any,
    ) -> None:
        super().__init__(primary, prior, **options)
        if not 0.0 <= label_smoothing < 1.0:
            raise UsageError(f"label_smoothing={label_smoothing}: give a share in [0, 1)")
        if ensemble_size < 1:
            raise UsageError(f"ensemble_size={ensemble_size}: average over at least 1 draw")
        self.label_smoothing = label_smoothing
        self._label_range = LabelRange()
        generator = torch.Generator().manual_seed(ENSEMBLE_SEED)
        # Not a buffer, so that it keeps its own precision.
        self.ensemble_gamma = prior.sample(ensemble_size, generator)

    @override
    def loss(self, batch: ImagesAndLabels, primary: PrimaryAtGamma) -> StepOutput:
        """Cross-entropy, in nats, with label smoothing where asked for.

        Raises:
            UsageError: If a label is not a class of the primary.
        """
        images, labels = batch
        logits = at_least_float32(primary(images))
        self._label_range.check(labels, logits.shape[1])
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return StepOutput(loss, logits.detach().log_softmax(dim=-1), labels)

    @override
    def configure_metrics(self) -> dict[str, Metric]:
        return {
            "accuracy": MulticlassAccuracy(average="micro", validate_args=False),
            "nll": NegativeLogLikelihood(),
            "calibration_error": TopLabelCalibrationError(),
        }

    @override
    def configure_extra_metrics(self, stage: Stage) -> dict[str, Metric]:
        if stage == "val":
            return {}
        return {"ensemble": EnsembleMetrics(self.ensemble_gamma, self.configure_metrics())}

    @override
    def predict_step(
        self,
        batch: ImagesAndLabels | Float[Tensor, "B *shape"],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> dict[str, Tensor]:
        """Predict by the average over draws, or over the gamma that was asked for.

        Args:
            batch: Images, alone or with labels.
            batch_idx: Index of the batch.
            dataloader_idx: Index of its data loader.

        Returns:
            For each sample its ``label``, if the batch has labels, the ``predicted`` class, the
            ``predictive_entropy`` and the ``mutual_information`` (nats), and ``probabilities``
            ``(B, C)``.
        """
        images = batch if isinstance(batch, Tensor) else batch[0]
        gammas = self.ensemble_gamma if self.requested is None else self.requested.shared
        log_probabilities = predictions_at(self.predict_primaries(gammas), images)
        average = ensemble(log_probabilities)
        return {
            **true_classes(batch),
            "predicted": average.argmax(dim=-1),
            "predictive_entropy": entropy(average),
            "mutual_information": mutual_information(log_probabilities),
            "probabilities": average.exp(),
        }
