"""Failures that were seen in other hypernetwork libraries, and the same theta where they are right.

The other tests hold the rest of them: tied parameters, threads, exceptions, checkpointing,
pickling, buffers (test_reweighted.py, test_selection.py), autocast, ``torch.compile``
(test_hypermodel.py).
"""

import hyperlight
import pytest
import torch
from torch import nn

from mip_lightning import (
    DrawsConfig,
    HyperModel,
    HypernetworkConfig,
    ThetaConfig,
    Uniform,
    UsageError,
)
from mip_lightning.networks import LeNet, MultilayerPerceptron

SMALL = HypernetworkConfig(hidden_sizes=[4, 8])


@pytest.mark.parametrize("dim", [1, 3])
def test_the_weights_of_hyperlight_give_the_theta_of_hyperlight(dim):
    torch.manual_seed(0)
    primary = LeNet()
    theirs = hyperlight.HyperNet(
        input_shapes={"gamma": (dim,)},
        output_shapes={name: p.shape for name, p in primary.named_parameters()},
        hidden_sizes=[16, 128],
    )
    model = HyperModel(primary, Uniform(0, 1, dim=dim))
    ours = [layer for layer in model.hypernetwork.trunk if isinstance(layer, nn.Linear)]
    linear = [layer for layer in theirs.backbone if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, other in zip(ours, linear[:-1], strict=True):
            layer.weight.copy_(other.weight)
            layer.bias.copy_(other.bias)
        model.hypernetwork.head.weight.copy_(linear[-1].weight)
        for name, value in theirs.get_independent_weights().items():
            model.theta0[name].copy_(value)
        for gamma in torch.rand(5, dim):
            expected = theirs(gamma=gamma)
            found = model.at(gamma).theta
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


class Odd(nn.Module):
    """Parameters whose names do not end in weight or bias, and a weight of one dimension."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))
        self.matrix = nn.Parameter(torch.rand(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        x = (x * self.weight) @ self.matrix
        x, _ = self.attention(x, x, x)
        return self.recurrent(x)[0]


def test_theta0_is_the_primarys_own_whatever_a_parameter_is_called():
    primary = Odd()
    before = {name: value.clone() for name, value in primary.named_parameters()}
    model = HyperModel(primary, Uniform(), hypernetwork=HypernetworkConfig([2], head_init="zero"))
    theta = model.at(torch.tensor([0.5])).theta
    assert theta.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(theta[name], value), name
    assert value.abs().max() > 0


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)])
def test_a_network_with_normalization_layers_is_wrapped(layer):
    model = HyperModel(nn.Sequential(nn.Conv2d(1, 2, 3), layer), Uniform(), hypernetwork=SMALL)
    assert set(model.layout.shapes) == {"0.weight", "0.bias"}
    assert model(torch.rand(4, 1, 8, 8), torch.rand(2, 1)).shape == (4, 2, 6, 6)


@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_with_one_gamma_a_sample_is_refused_in_training_with_the_reason(track):
    layer = nn.BatchNorm2d(2, track_running_stats=track)
    model = HyperModel(nn.Sequential(nn.Conv2d(1, 2, 3), layer), Uniform(), hypernetwork=SMALL)
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(UsageError, match=r"1 is a BatchNorm2d in training.*GroupNorm"):
        model(x, torch.rand(4, 1))
    model(x, torch.rand(2, 1))
    model(x[:1], torch.rand(1, 1))
    model.eval()
    if track:  # the statistics are those of training: a sample does not see the others
        gamma = torch.rand(4, 1)
        alone = torch.cat([model(x[i : i + 1], gamma[i]) for i in range(4)])
        torch.testing.assert_close(model(x, gamma), alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("network", [nn.LSTM(3, 4), nn.MultiheadAttention(4, 2)])
def test_draws_of_a_layer_of_torch_that_takes_samples_second_are_split_there(network):
    model = HyperModel(network, Uniform(), hypernetwork=SMALL)
    inputs = (torch.rand(4, 6, 3),) if isinstance(network, nn.LSTM) else (torch.rand(4, 6, 4),) * 3
    gamma = torch.rand(2, 1)
    found = model(inputs, gamma)[0]
    halves = [model(tuple(t[:, 3 * i : 3 * i + 3] for t in inputs), gamma[i])[0] for i in (0, 1)]
    torch.testing.assert_close(found, torch.cat(halves, dim=1))


def test_one_of_many_inputs_out_of_range_is_refused_not_warned_of():
    model = HyperModel(MultilayerPerceptron(4), Uniform(dim=3), hypernetwork=SMALL)
    with pytest.raises(UsageError, match=r"gamma\[0, 2\] is 1.2"):
        model(torch.rand(2, 4), [0.1, 0.5, 1.2])


def test_the_order_in_which_theta0_is_given_does_not_matter():
    trained = LeNet()
    model = HyperModel(LeNet(), Uniform(), hypernetwork=HypernetworkConfig([2], head_init="zero"))
    model.primary.load_state_dict(dict(reversed(trained.state_dict().items())))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x, 0.3), trained(x))


def test_the_hypernetwork_of_a_hypermodel_can_itself_be_hypernetized():
    torch.manual_seed(0)
    inner = HyperModel(MultilayerPerceptron(4), Uniform(), hypernetwork=SMALL)
    predicted = ThetaConfig(predicted=["hypernetwork.*"])
    draws = DrawsConfig({"gamma": 0})  # those of the inner one are split between those of the outer
    outer = HyperModel(inner, Uniform(0, 2), hypernetwork=SMALL, theta=predicted, draws=draws)
    assert set(outer.layout.shapes) == {
        f"hypernetwork.{name}" for name, _ in inner.hypernetwork.named_parameters()
    }
    x, first, second = torch.rand(6, 4), torch.tensor([0.3]), torch.tensor([1.7])
    output = outer({"inputs": x, "gamma": first}, second)
    half_way = outer.materialize(1.7)
    assert type(half_way) is HyperModel
    torch.testing.assert_close(half_way(x, first), output)
    torch.testing.assert_close(half_way.materialize(0.3)(x), output)
    assert not torch.equal(outer({"inputs": x, "gamma": first}, torch.tensor([0.1])), output)
    output.sum().backward()
    assert outer.hypernetwork.head.weight.grad.abs().sum() > 0
    both = outer((x, torch.rand(2, 1)), torch.rand(2, 1))
    assert both.shape == output.shape
