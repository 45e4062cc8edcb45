"""Primaries of complex numbers, and of half precision: what is predicted, and in which type."""

import copy
import math
from functools import partial

import pytest
import torch
from helpers import LossAlone, loader, trainer
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from mip_lightning import HyperModel, HypernetworkConfig, ThetaConfig, Uniform, callbacks
from mip_lightning.diagnostics import weight_statistics
from mip_lightning.hypernetworks import ChunkedHead, DenseHead, LowRankHead

GAMMA = torch.tensor([[0.1], [0.9]])


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: it multiplies the low frequencies of a signal."""

    def __init__(self, size: int = 4):
        super().__init__()
        frequencies = size // 2 + 1
        self.weight = nn.Parameter(torch.randn(frequencies, frequencies, dtype=torch.cfloat))
        self.phase = nn.Parameter(torch.tensor(0.5 + 0.5j))
        self.scale = nn.Linear(size, size)

    def forward(self, x):
        spectrum = torch.fft.rfft(self.scale(x)) @ self.weight * self.phase
        return torch.fft.irfft(spectrum, n=x.shape[-1])


HEADS = {
    "dense": DenseHead,
    "low rank": partial(LowRankHead, rank=1),
    "chunked": partial(ChunkedHead, chunk_size=8),
}


@pytest.mark.parametrize("head", HEADS)
def test_both_parts_of_complex_parameters_are_predicted(head):
    """Neuraloperator issue 521: only the real part depended on gamma."""
    net = Spectral()
    given = copy.deepcopy(net)
    config = HypernetworkConfig(hidden_sizes=[4, 8], head=HEADS[head])
    model = HyperModel(net, Uniform(), hypernetwork=config)
    assert model.layout.num_predicted == 2 * 9 + 2 * 1 + 16 + 4
    with torch.no_grad():  # tensors of one dimension start without a change
        for parameter in model.hypernetwork.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theta = model.at(GAMMA).theta
    assert {name: weight.dtype for name, weight in theta.items()} == {
        name: parameter.dtype for name, parameter in given.named_parameters()
    }
    for name in ("weight", "phase"):
        first, second = torch.view_as_real(theta[name])
        assert (first != second).all()
    x = torch.rand(6, 4)
    each = [
        functional_call(given, {name: weight[draw] for name, weight in theta.items()}, (part,))
        for draw, part in enumerate(x.chunk(2))
    ]
    torch.testing.assert_close(model.at(GAMMA)(x), torch.cat(each))
    ordinary = model.materialize(0.1)
    torch.testing.assert_close(ordinary(x[:3]), each[0])
    model.at(GAMMA)(x).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize("head_init", ["kaiming_fan_out", "hyperfan_in"])
def test_a_complex_change_starts_with_the_variance_of_a_real_one(head_init):
    torch.manual_seed(0)

    def variance(dtype: torch.dtype) -> float:
        net = nn.Module()
        net.weight = nn.Parameter(torch.zeros(60, 50, dtype=dtype))
        net.forward = lambda: None
        config = HypernetworkConfig(head_init=head_init)
        model = HyperModel(net, Uniform(), hypernetwork=config)
        changes = model.at(torch.rand(20, 1)).theta["weight"].detach()
        return float(changes.abs().square().mean())

    assert math.isclose(variance(torch.cfloat), variance(torch.float), rel_tol=0.5)


def test_statistics_are_of_the_parts_of_complex_numbers():
    model = HyperModel(Spectral(), Uniform())
    found = weight_statistics(model, GAMMA)
    theta = torch.view_as_real(model.at(0.9).theta["weight"].detach())
    torch.testing.assert_close(found["weight"].std[1], theta.std(correction=0))
    torch.testing.assert_close(found["weight"].norm[1], theta.norm())


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_complex_primary_is_trained_with_what_the_library_offers(tmp_path, weight_norm):
    theta = ThetaConfig(weight_norm=weight_norm, weight_decay=1e-3)
    module = LossAlone(Spectral(), Uniform(), theta=theta, draws_per_batch=2)
    before = {name: weight.clone() for name, weight in module.model.theta0.items()}
    own = [
        callbacks.PredictedWeightStats(),
        callbacks.GradientStats(),
        callbacks.Distributions(),
        callbacks.TrainingStability(),
    ]
    run = trainer(default_root_dir=tmp_path, max_epochs=2, callbacks=own)
    run.fit(module, loader(), loader())
    assert list(tmp_path.rglob("predicted_weight_stats.png"))
    assert all((weight != before[name]).any() for name, weight in module.model.theta0.items())
    parts = torch.view_as_real(module.model.theta0["weight"] - before["weight"])
    assert (parts != 0).all()


def test_a_complex_parameter_that_is_not_finite_is_noticed():
    from mip_lightning.utilities.finite import first_not_finite, has_nan

    wrong = torch.tensor([1.0, complex(0.0, math.nan)])
    assert has_nan({"y": wrong})
    assert first_not_finite({"weight": wrong.real, "phase": wrong}) == "phase"


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.LayerNorm(5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)))


@pytest.mark.parametrize("draws", [1, 2])
def test_weights_are_given_in_the_type_of_the_parameters(draws):
    """A bfloat16 primary with LayerNorm failed on types; its weights are formed in float32."""
    net = Normalized().bfloat16()
    model = HyperModel(net, Uniform())
    assert {weight.dtype for weight in model.at(0.3).theta.values()} == {torch.bfloat16}
    x = torch.rand(4, 2, 5, dtype=torch.bfloat16)
    gamma = GAMMA[:draws]
    found = model.at(gamma)(x)
    each = [
        functional_call(net, model.at(own).theta, (part,))
        for own, part in zip(gamma, x.chunk(draws), strict=True)
    ]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, torch.cat(each), rtol=0.02, atol=0.02)
    F.mse_loss(found.float(), torch.zeros(4, 4, 3)).backward()
    assert model.hypernetwork.head.weight.grad.dtype == torch.float32
    theta0 = dict(model.primary.named_parameters())["conv.weight"]
    change = model.hypernetwork(GAMMA[:1])
    exact = theta0.float() + change[0, : theta0.numel()].view_as(theta0)
    torch.testing.assert_close(model.at(0.1).theta["conv.weight"], exact.bfloat16())
