from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import LossAlone, bayesian_task, image_loader, rows, trainer
from helpers import loader as vectors
from lightning.pytorch import LightningModule
from scipy.stats import gaussian_kde
from torch import nn

from mip_lightning import HyperModel, HypernetworkConfig, ThetaConfig, Uniform, UsageError
from mip_lightning.callbacks import Distributions
from mip_lightning.diagnostics.distributions import collect, estimate
from mip_lightning.networks import LeNet
from mip_lightning.tasks import BayesianClassification


@pytest.mark.parametrize("formulation", ["default", "mip"])
def test_the_ordinary_network_is_the_primary_as_it_was_given(formulation):
    primary = LeNet(normalization="batch")
    before = {name: value.clone() for name, value in primary.state_dict().items()}
    model = HyperModel(primary, Uniform(), formulation)
    with torch.no_grad():
        for parameter in model.theta0.values():
            parameter.add_(1.0)  # as if it had trained
    ordinary = model.original_primary()
    assert type(ordinary) is LeNet
    for name, value in ordinary.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_scaled_theta0_leaves_the_ordinary_network_as_it_was_given():
    primary = nn.Linear(4, 4)
    before = primary.weight.detach().clone()
    config = HypernetworkConfig(head_init="hyperfan_in")
    model = HyperModel(primary, Uniform(), hypernetwork=config)
    assert not torch.equal(model.theta0["weight"], before)
    assert torch.equal(model.original_primary().weight, before)


def test_a_frozen_normalization_stays_frozen_and_a_second_fit_has_a_file_of_its_own():
    frozen: list[bool] = []

    class Logging(LossAlone):
        """What its loss logs belongs to no step when the callback calls it."""

        def loss(self, batch, primary):
            loss = super().loss(batch, primary)
            self.log("part", loss)
            return loss

        def on_train_batch_start(self, batch, batch_idx):
            frozen.append(not self.model.primary[1].training)

        def on_train_epoch_start(self):
            self.model.primary[1].eval()

    distributions = Distributions(num_gammas=2)
    for folder in ("first", "second"):
        task = Logging(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), Uniform(0, 1))
        t = trainer(callbacks=[distributions], default_root_dir=folder)
        t.fit(task, vectors(), vectors())
        assert {row["step"] for row in rows(f"{folder}/distributions.csv")} == {"0", "4"}
    assert frozen
    assert all(frozen)


@pytest.mark.parametrize("formulation", ["default", "mip"])
def test_samples_are_the_weights_and_activations_of_materialized_networks(formulation):
    primary = LeNet(normalization="batch")
    task = BayesianClassification(primary, Uniform(0, 1), formulation=formulation).train()
    batch, grid = [torch.rand(6, 1, 9, 9), torch.zeros(6).long()], Uniform().grid(3)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    samples = collect(task, batch, grid)
    assert task.training
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name
    networks = {
        -1: task.model.original_primary(),
        **{k: task.model.materialize(g) for k, g in enumerate(grid)},
    }
    assert set(samples) == {
        (of, layer)
        for of in ("weights", "activations")
        for layer in [f"features.{i}" for i in (0, 4, 8, 11)] + ["classifier.1", "classifier.3"]
    }
    for index, network in networks.items():
        network.eval()
        features = network.features[0](batch[0]).detach().flatten()
        picked = features[:: -(-len(features) // 4000)]
        found = samples["activations", "features.0"][index]
        np.testing.assert_allclose(found, picked, rtol=1e-4, atol=1e-6)
        logits = network(batch[0]).detach().flatten()
        np.testing.assert_allclose(
            samples["activations", "classifier.3"][index], logits, rtol=1e-3, atol=1e-5
        )
        weight = network.classifier[3].weight.detach().flatten()
        np.testing.assert_allclose(
            samples["weights", "classifier.3"][index], weight, rtol=1e-5, atol=1e-7
        )


def test_densities_are_those_of_scipy_and_a_constant_has_none():
    random = np.random.default_rng(0)
    samples = {-1: random.normal(size=500), 0: 3 * random.normal(size=500), 1: np.zeros(500)}
    curves = estimate(samples)
    assert curves.keys() == {-1, 0}
    points, density = curves[0]
    np.testing.assert_allclose(density, gaussian_kde(samples[0])(points))
    assert np.trapezoid(density, points) == pytest.approx(1, abs=0.02)


def test_densities_are_recorded_before_the_first_step_and_at_the_end():
    initial = bayesian_task()
    expected = initial.model.at(torch.tensor([1.0])).theta["layers.1.weight"].detach()
    t = trainer(max_epochs=2, callbacks=[Distributions(num_gammas=3)], default_root_dir="out")
    t.fit(initial, image_loader(), image_loader())
    recorded = rows("out/distributions.csv")
    assert {row["step"] for row in recorded} == {"0", "6"}
    assert {row["network"] for row in recorded} == {"ordinary", "hypernetwork"}
    assert {row["gamma"] for row in recorded} == {"", "0.0", "0.5", "1.0"}
    curve = [
        (float(row["value"]), float(row["density"]))
        for row in recorded
        if (row["step"], row["of"], row["layer"], row["gamma"])
        == ("0", "weights", "layers.1", "1.0")
    ]
    points, density = np.array(curve).T
    kernel = gaussian_kde(expected.double().flatten().numpy())
    np.testing.assert_allclose(density, kernel(points), rtol=1e-3, atol=1e-6)
    for when in ("before", "after"):
        assert matplotlib.image.imread(f"out/distributions_{when}.png").std() > 0.05


def test_recording_does_not_change_the_training():
    weights = []
    for callbacks in ([], [Distributions()]):
        torch.manual_seed(0)
        task = bayesian_task(theta=ThetaConfig())
        t = trainer(callbacks=callbacks, default_root_dir="out")
        t.fit(task, image_loader(), image_loader())
        weights.append([p.detach().clone() for p in task.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_val_batches": 0}])
def test_it_stands_shortened_runs(options):
    t = trainer(callbacks=[Distributions()], default_root_dir="out", **options)
    t.fit(bayesian_task(), image_loader(), image_loader())
    assert ("fast_dev_run" in options) == (not Path("out").exists())


def test_a_resumed_run_adds_its_end_alone():
    def fit(epochs, resume=None):
        t = trainer(max_epochs=epochs, callbacks=[Distributions()], default_root_dir="out")
        t.fit(bayesian_task(), image_loader(), image_loader(), ckpt_path=resume)
        return t

    fit(1).save_checkpoint("one.ckpt")
    fit(2, resume="one.ckpt")
    assert list(dict.fromkeys(row["step"] for row in rows("out/distributions.csv"))) == [
        "0",
        "3",
        "6",
    ]


def test_what_is_no_hypernetwork_is_refused():
    with pytest.raises(UsageError, match="needs a HyperLightningModule"):
        Distributions().setup(trainer(), LightningModule(), "fit")
    with pytest.raises(UsageError, match="num_gammas=0"):
        Distributions(num_gammas=0)
