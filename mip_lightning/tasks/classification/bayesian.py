"""Bayesian classification: gamma is a latent draw, the trained weights a posterior's samples."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from mip_lightning.core._minibatch import StepOutput
from mip_lightning.core.module import DrawsPerBatch, HyperLightningModule, Stage
from mip_lightning.core.parameter_groups import GroupOptions
from mip_lightning.core.sweep import NaNAware
from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks.hypermodel import Formulation
from mip_lightning.hypernetworks.hypernetwork import HypernetworkConfig
from mip_lightning.hypernetworks.theta import ThetaConfig
from mip_lightning.priors import Prior
from mip_lightning.tasks._label_range import LabelRange
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
        formulation: ``default``, ``input``, ``output`` or ``mip``.
        hypernetwork: Architecture of the hypernetwork.
        theta: Which parameters are predicted, and how theta0 starts and trains.
        group_options: Options of the optimizer that differ for a part of the model (``theta0``,
            ``ordinary``, ``trunk``, ``head``), such as ``{"theta0": {"lr": 1e-5}}``.
        draws_per_batch: K, the number of gamma drawn for a training batch, which must divide it;
            or ``one_per_sample``.
        validation_grid_size: Number of gamma over which validation sweeps.
        test_grid_size: Number of gamma over which test sweeps.
        label_smoothing: Share of the target spread over all classes, in [0, 1), in the loss.
        ensemble_size: M, the number of draws over which test and predict average.

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
        formulation: Formulation = "mip",
        hypernetwork: HypernetworkConfig = HypernetworkConfig(),
        theta: ThetaConfig = ThetaConfig(),
        group_options: GroupOptions | None = None,
        draws_per_batch: DrawsPerBatch = 1,
        validation_grid_size: int = 5,
        test_grid_size: int = 11,
        label_smoothing: float = 0.0,
        ensemble_size: int = 20,
    ) -> None:
        super().__init__(
            primary,
            prior,
            formulation,
            hypernetwork,
            theta,
            group_options,
            draws_per_batch,
            validation_grid_size,
            test_grid_size,
        )
        if not 0.0 <= label_smoothing < 1.0:
            raise UsageError(f"label_smoothing={label_smoothing}: give a share in [0, 1)")
        if ensemble_size < 1:
            raise UsageError(f"ensemble_size={ensemble_size}: average over at least 1 draw")
        self.label_smoothing = label_smoothing
        self._label_range = LabelRange()
        generator = torch.Generator().manual_seed(ENSEMBLE_SEED)
        # Neither a buffer nor submodules: so they keep their own precision.
        self.ensemble_gamma = prior.sample(ensemble_size, generator)
        self._ensemble_metrics: dict[str, Metric] = {
            **{name: NaNAware(metric) for name, metric in self.configure_metrics().items()},
            "predictive_entropy": MeanMetric(nan_strategy="disable"),
            "mutual_information": MeanMetric(nan_strategy="disable"),
        }

    def loss(self, batch: ImagesAndLabels, gamma: Float[Tensor, "K D"]) -> StepOutput:
        """Cross-entropy, in nats, with label smoothing where asked for.

        Raises:
            UsageError: If a label is no class of the primary.
        """
        images, labels = batch
        logits = at_least_float32(self(images, gamma))
        self._label_range.check(labels, logits.shape[1])
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return StepOutput(loss, logits.detach().log_softmax(dim=-1), labels)

    def configure_metrics(self) -> dict[str, Metric]:
        """Top-1 accuracy, negative log-likelihood and calibration error."""
        return {
            "accuracy": MulticlassAccuracy(average="micro", validate_args=False),
            "nll": NegativeLogLikelihood(),
            "calibration_error": TopLabelCalibrationError(),
        }

    @override
    def extra_metrics(self, stage: Stage) -> Mapping[str, Metric]:
        if stage == "val":
            return {}
        return {f"{name}_ensemble": metric for name, metric in self._ensemble_metrics.items()}

    @override
    def update_extra_metrics(self, batch: ImagesAndLabels, stage: Stage) -> None:
        if stage == "val":
            return
        images, labels = batch
        log_probabilities = self._draw_predictions(images)
        average = ensemble(log_probabilities)
        metrics = self._ensemble_metrics
        for name in self.configure_metrics():
            metrics[name].update(average, labels)
        metrics["predictive_entropy"].update(entropy(average))
        metrics["mutual_information"].update(mutual_information(log_probabilities))

    def predict_step(
        self, batch: ImagesAndLabels | Float[Tensor, "B *shape"], batch_idx: int
    ) -> dict[str, Tensor]:
        """Predict by the average over draws, or over the gamma that was asked for.

        Args:
            batch: Images, alone or with labels, which are not used.
            batch_idx: Index of the batch.

        Returns:
            ``probabilities`` ``(B, C)``, and for each sample the ``predicted`` class, the
            ``predictive_entropy`` and the ``mutual_information`` (nats).
        """
        images = batch if isinstance(batch, Tensor) else batch[0]
        log_probabilities = self._draw_predictions(images)
        average = ensemble(log_probabilities)
        return {
            "predicted": average.argmax(dim=-1),
            "predictive_entropy": entropy(average),
            "mutual_information": mutual_information(log_probabilities),
            "probabilities": average.exp(),
        }

    def _draw_predictions(self, images: Float[Tensor, "B *shape"]) -> Float[Tensor, "M B C"]:
        """Log-probabilities at each of M draws."""
        gammas = self.ensemble_gamma if self.requested is None else self.requested.shared
        draws = self.evaluation_draws.of(self.model, gammas)
        logits = [drawn.run(self.model, images) for drawn in draws]
        return at_least_float32(torch.stack(logits)).log_softmax(dim=-1)
