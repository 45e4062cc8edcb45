"""The paper's claim on real data: MIP trains where the default formulation does not."""

import pytest
import torch
from helpers import trainer

from mip_lightning import Uniform
from mip_lightning.data import MNIST
from mip_lightning.networks import LeNet
from mip_lightning.tasks import BayesianClassification


@pytest.mark.slow
def test_after_two_epochs_of_adam_mip_classifies_mnist_and_the_default_does_not(real_mnist):
    accuracies = {}
    data = MNIST(str(real_mnist), num_train=8000, validation_fraction=0.0)
    for formulation in ("default", "mip"):
        torch.manual_seed(0)
        task = BayesianClassification(LeNet(), Uniform(0, 1), formulation=formulation)
        t = trainer(max_epochs=2, limit_val_batches=0)
        t.fit(task, data)
        (logged,) = t.test(task, data, verbose=False)
        accuracies[formulation] = logged["test_accuracy"]
    assert accuracies["mip"] >= 0.9
    assert accuracies["default"] < 0.6
