import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde
from torch import nn

from mip_lightning import HyperModel, HypernetworkConfig, Uniform
from mip_lightning.diagnostics.distributions import collect, estimate, plot_densities
from mip_lightning.networks import LeNet
from mip_lightning.tasks import BayesianClassification


@pytest.mark.parametrize("formulation", ["default", "mip"])
def test_the_ordinary_network_is_the_primary_as_it_was_given(formulation):
    primary = LeNet(normalization="batch")
    before = {name: value.clone() for name, value in primary.state_dict().items()}
    model = HyperModel(primary, Uniform(), formulation)
    ordinary = model.original_primary()
    with torch.no_grad():
        for parameter in model.theta0.values():
            parameter.add_(1.0)  # as if it had trained
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


@pytest.mark.parametrize("formulation", ["default", "mip"])
def test_samples_are_the_weights_and_activations_of_materialized_networks(formulation):
    primary = LeNet(normalization="batch")
    task = BayesianClassification(primary, Uniform(0, 1), formulation=formulation).train()
    batch, grid = [torch.rand(6, 1, 9, 9), torch.zeros(6).long()], Uniform().grid(3)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    samples = collect(task, task.model.original_primary(), batch, grid)
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


def test_densities_are_those_of_scipy_each_over_its_own_values():
    random = np.random.default_rng(0)
    wide, narrow = random.normal(size=500), 1e-4 * random.standard_t(2, size=4000)
    samples = {-1: wide, 0: narrow, 1: np.zeros(500), 2: np.full(9, 0.1)}
    curves = estimate(samples)
    for index in (-1, 0):
        points, density = curves[index]
        np.testing.assert_allclose(density, gaussian_kde(samples[index])(points))
        assert np.trapezoid(density, points) == pytest.approx(1, abs=0.005)
    assert [(float(v[0]), float(d[0])) for v, d in (curves[1], curves[2])] == [
        (0.0, np.inf),
        (0.1, np.inf),
    ]


def test_a_constant_is_a_line_that_the_legend_names():
    random = np.random.default_rng(0)
    curves = estimate({-1: random.normal(size=50), 0: np.zeros(50), 1: random.normal(size=50)})
    axes = Figure().subplots()
    plot_densities(axes, curves, ["gamma"], torch.tensor([[0.0], [1.0]]))
    legend = axes.get_legend_handles_labels()[1]
    assert legend == [r"$\gamma$ = 0 (all 0)", r"$\gamma$ = 1", "ordinary network"]
