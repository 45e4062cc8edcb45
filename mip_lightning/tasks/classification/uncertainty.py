"""What a Bayesian network knows of its own uncertainty, from log-probabilities.

Everything here takes log-probabilities, for a probability that underflows to 0 would make the
negative log-likelihood infinite.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryCalibrationError
from typing_extensions import override


def ensemble(log_probabilities: Float[Tensor, "M B C"]) -> Float[Tensor, "B C"]:
    """Log of the probabilities averaged over M draws: the posterior predictive distribution."""
    return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))


def entropy(log_probabilities: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape"]:
    """Entropy in nats; a class of probability 0 adds 0.

    Args:
        log_probabilities: Normalized over the last dimension.
    """
    terms: Tensor = torch.special.entr(log_probabilities.exp())
    return terms.sum(dim=-1)


def mutual_information(log_probabilities: Float[Tensor, "M B C"]) -> Float[Tensor, " B"]:
    """Mutual information of label and draw, in nats: how much the M draws disagree.

    The entropy of the averaged prediction less the averaged entropy of the predictions, never
    below 0 by rounding. It is the epistemic part of the predictive entropy.

    Source: Houlsby et al., "Bayesian Active Learning for Classification", 2011, Equation 2.
    """
    total = entropy(ensemble(log_probabilities))
    return (total - entropy(log_probabilities).mean(dim=0)).clamp(min=0.0)


class NegativeLogLikelihood(Metric):
    """Mean negative log-likelihood of the true classes, in nats, over all ranks' samples."""

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, log_probabilities: Float[Tensor, "B C"], target: Int[Tensor, " B"]) -> None:
        self.total -= log_probabilities.gather(1, target.unsqueeze(1)).sum()
        self.count += len(target)

    @override
    def compute(self) -> Float[Tensor, ""]:
        return self.total / self.count


class TopLabelCalibrationError(BinaryCalibrationError):
    """Expected calibration error of the predicted class: |confidence - accuracy| over bins.

    ``torchmetrics`` computes it; its multiclass form asks for a number of classes that it does
    not use, and guesses from the values whether they are logits.

    Args:
        n_bins: Number of equally wide bins of confidence.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, Equation 3.
    """

    def __init__(self, n_bins: int = 15) -> None:
        super().__init__(n_bins=n_bins, norm="l1", validate_args=False)

    @override
    def update(self, log_probabilities: Float[Tensor, "B C"], target: Int[Tensor, " B"]) -> None:
        confidence, predicted = log_probabilities.exp().max(dim=-1)
        super().update(confidence.clamp(max=1.0), (predicted == target).long())
        # Ranks gather states of one type, and the empty one of a rank without samples is real.
        self.accuracies[-1] = self.accuracies[-1].to(confidence.dtype)
