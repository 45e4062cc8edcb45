import math

import numpy as np
import pytest
import torch
from helpers import bayesian_task, image_loader, output_at, trainer
from scipy import stats
from sklearn.metrics import log_loss
from torch.nn import functional as F

from mip_lightning import Normal, Uniform, UsageError
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification
from mip_lightning.tasks.classification.uncertainty import (
    NegativeLogLikelihood,
    TopLabelCalibrationError,
    ensemble,
    entropy,
    mutual_information,
)


def log_probabilities(*shape: int) -> torch.Tensor:
    return (3 * torch.randn(*shape, dtype=torch.float64)).log_softmax(dim=-1)


def test_an_ensemble_averages_probabilities():
    parts = log_probabilities(4, 5, 3)
    torch.testing.assert_close(ensemble(parts).exp(), parts.exp().mean(dim=0))


def test_the_entropy_is_that_of_scipy_even_where_a_probability_is_zero():
    parts = log_probabilities(7, 4)
    expected = stats.entropy(parts.exp().numpy(), axis=1)
    np.testing.assert_allclose(entropy(parts).numpy(), expected, atol=1e-12)
    certain = torch.tensor([[0.0, -math.inf]])
    assert entropy(certain).item() == 0


def test_mutual_information_is_zero_for_agreement_and_log_two_for_two_certain_opposites():
    same = log_probabilities(1, 5, 3).expand(4, 5, 3)
    torch.testing.assert_close(mutual_information(same), torch.zeros(5, dtype=torch.float64))
    opposites = torch.tensor([[[0.0, -1e4]], [[-1e4, 0.0]]])
    assert mutual_information(opposites).item() == pytest.approx(math.log(2))


def test_the_negative_log_likelihood_is_that_of_scikit_learn_and_stays_finite():
    parts, labels = log_probabilities(50, 4), torch.randint(4, (50,))
    metric = NegativeLogLikelihood()
    for chunk in range(0, 50, 20):
        metric.update(parts[chunk : chunk + 20], labels[chunk : chunk + 20])
    expected = log_loss(labels.numpy(), parts.exp().numpy(), labels=range(4))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)
    underflowing = torch.tensor([[0.0, -500.0]])
    metric.reset()
    metric.update(underflowing, torch.tensor([1]))
    assert metric.compute().item() == 500


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy_over_bins():
    # Two samples at confidence 0.9, one right; two at 0.6, both right: 0.5 * 0.4 + 0.5 * 0.4.
    parts = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]).log()
    metric = TopLabelCalibrationError(n_bins=10)
    metric.update(parts, torch.tensor([0, 1, 1, 1]))
    assert metric.compute().item() == pytest.approx(0.4, abs=1e-6)


def test_a_label_that_is_no_class_is_named():
    images, _ = next(iter(image_loader()))
    with pytest.raises(UsageError, match="reach from 0 to 3, and the primary tells 3 classes"):
        output_at(bayesian_task(), (images[:2], torch.tensor([0, 3])), torch.tensor([[0.5]]))


def test_the_loss_is_cross_entropy_with_label_smoothing():
    images, labels = next(iter(image_loader()))
    gamma = torch.rand(1, 1)
    for smoothing in (0.0, 0.1):
        task = bayesian_task(label_smoothing=smoothing)
        logits = task(images, gamma)
        uniform = -logits.log_softmax(-1).mean(-1)
        plain = F.cross_entropy(logits, labels, reduction="none")
        expected = ((1 - smoothing) * plain + smoothing * uniform).mean()
        torch.testing.assert_close(output_at(task, (images, labels), gamma).loss, expected)


def test_test_reports_the_average_over_gamma_and_the_ensemble():
    task = bayesian_task(ensemble_size=5, test_grid_size=4)
    (logged,) = trainer().test(task, image_loader(), verbose=False)
    images, labels = image_loader().dataset.tensors
    with torch.no_grad():
        drawn = torch.stack(
            [task.model(images, g).double().log_softmax(-1) for g in task.ensemble_gamma]
        )
        swept = [task.model(images, g) for g in Uniform(0, 1).grid(4)]
    average = drawn.exp().mean(0)
    hits = [(logits.argmax(-1) == labels).float().mean().item() for logits in swept]
    assert logged["test_accuracy"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert logged["test_accuracy_best"] == pytest.approx(max(hits), abs=1e-6)
    assert logged["test_accuracy_ensemble"] == pytest.approx(
        (average.argmax(-1) == labels).float().mean().item(), abs=1e-6
    )
    expected = log_loss(labels.numpy(), average.numpy(), labels=range(3))
    assert logged["test_nll_ensemble"] == pytest.approx(expected, abs=1e-5)
    assert logged["test_predictive_entropy_ensemble"] == pytest.approx(
        stats.entropy(average.numpy(), axis=1).mean(), abs=1e-5
    )
    assert logged["test_mutual_information_ensemble"] == pytest.approx(
        mutual_information(drawn).mean().item(), abs=1e-5
    )
    assert {"test_calibration_error", "test_calibration_error_ensemble"} <= logged.keys()


def test_predictions_do_not_depend_on_the_seed_of_the_run():
    task = BayesianClassification(MultilayerPerceptron(6, 3), Normal(dim=2))
    torch.manual_seed(7)
    other = BayesianClassification(MultilayerPerceptron(6, 3), Normal(dim=2))
    assert torch.equal(task.ensemble_gamma, other.ensemble_gamma)
    images = torch.rand(4, 6)
    predicted = task.predict_step(images, 0)
    assert torch.equal(
        task.predict_step((images, torch.zeros(4).long()), 0)["probabilities"],
        predicted["probabilities"],
    )
    torch.testing.assert_close(predicted["probabilities"].sum(-1), torch.ones(4))


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 1.0), ("ensemble_size", 0)])
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name}={value}"):
        bayesian_task(**{name: value})


def test_an_ensemble_that_was_broken_off_is_forgotten():
    task = bayesian_task(test_grid_size=2)
    (before,) = trainer().test(task, image_loader(), verbose=False)
    images, labels = next(iter(image_loader()))
    with torch.inference_mode():  # as in the trainer
        task.test_step([images, (labels + 1) % 3], 0)
    (after,) = trainer().test(task, image_loader(), verbose=False)
    assert after == pytest.approx(before)
