import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from mip_lightning import (
    HyperModel,
    HypernetworkConfig,
    IdentityEncoding,
    L2Encoding,
    Normal,
    Uniform,
    UsageError,
)
from mip_lightning.networks import LeNet, MultilayerPerceptron


def make(formulation="mip", prior=None, primary=None, **config) -> HyperModel:
    return HyperModel(
        primary or LeNet(), prior or Uniform(0, 1), formulation, HypernetworkConfig(**config)
    )


def flat(model: HyperModel, gamma: torch.Tensor) -> torch.Tensor:
    return torch.cat([t.flatten() for t in model.at(gamma).theta.values()])


@pytest.mark.parametrize("sign", [1, -1])
def test_at_initialization_the_default_formulation_is_proportional_to_gamma(sign):
    model = make("default", Uniform(-1, 1))
    gammas = sign * torch.logspace(-4, 0, 20)
    with torch.no_grad():
        ratios = torch.stack([flat(model, g.view(1)).std() / g.abs() for g in gammas])
    torch.testing.assert_close(ratios / ratios[0], torch.ones(20), atol=1e-5, rtol=0)


def test_each_sign_of_gamma_has_its_own_constant_of_proportionality():
    model = make("default", Uniform(-1, 1))
    plus, minus = flat(model, torch.tensor([1.0])), flat(model, torch.tensor([-1.0]))
    assert abs(plus.std() / minus.std() - 1) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_at_initialization_the_std_of_mip_varies_little_while_its_predictions_do_vary(seed):
    torch.manual_seed(seed)
    model = make("mip")
    with torch.no_grad():
        thetas = torch.stack([flat(model, g) for g in Uniform(0, 1).grid(11)])
    stds = thetas.std(dim=1)
    assert stds.max() / stds.min() < 1.1
    deltas = thetas - thetas[0]
    assert deltas[-1].norm() / thetas[0].norm() > 0.05


def test_theta_is_what_the_formulas_say_in_float64():
    model = make("mip", Uniform(0, 2), nn.Linear(3, 2), hidden_sizes=[4, 5]).double()
    gamma = 0.7
    layers = [layer for layer in model.hypernetwork.trunk if isinstance(layer, nn.Linear)]
    angle = gamma / 2 * np.pi / 2
    x = np.array([np.cos(angle), np.sin(angle)])
    for layer in layers:
        x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
        x = np.where(x > 0, x, 0.01 * x)
    delta = model.hypernetwork.head.weight.detach().numpy() @ x
    theta0 = np.concatenate([p.detach().numpy().ravel() for p in model.primary.parameters()])
    theta = flat(model, torch.tensor([gamma], dtype=torch.float64)).detach().numpy()
    np.testing.assert_allclose(theta, theta0 + delta, atol=1e-12)


def test_head_rows_start_with_the_size_of_their_own_tensor_as_fan_out():
    model = make()
    gain = (2 / (1 + 0.01**2)) ** 0.5
    rows = model.hypernetwork.head.weight.split(model.layout.sizes)
    for weight, (name, shape) in zip(rows, model.layout.shapes.items(), strict=True):
        if len(shape) == 1:
            assert weight.abs().max() == 0, name
        else:
            expected = gain / shape.numel() ** 0.5
            tolerance = 5 / (2 * weight.numel()) ** 0.5  # five standard errors
            assert weight.std().item() / expected == pytest.approx(1, abs=tolerance), name


def test_hidden_layers_start_by_kaiming_fan_out_with_biases_zero():
    model = make(hidden_sizes=[512, 1024])
    first, second = (m for m in model.hypernetwork.trunk if isinstance(m, nn.Linear))
    gain = (2 / (1 + 0.01**2)) ** 0.5
    for layer in (first, second):
        expected = gain / layer.out_features**0.5
        tolerance = 5 / (2 * layer.weight.numel()) ** 0.5
        assert layer.weight.std().item() / expected == pytest.approx(1, abs=tolerance)
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("formulation", "encoding", "keeps"),
    [
        ("default", IdentityEncoding, False),
        ("input", L2Encoding, False),
        ("output", IdentityEncoding, True),
        ("mip", L2Encoding, True),
    ],
)
def test_a_formulation_chooses_the_encoding_and_how_theta0_starts(formulation, encoding, keeps):
    primary = LeNet()
    before = copy.deepcopy(primary.state_dict())
    model = make(formulation, primary=primary)
    assert type(model.hypernetwork.encoding) is encoding
    for name, value in model.primary.state_dict().items():
        assert torch.equal(value, before[name] if keeps else torch.zeros_like(value)), name


def test_an_encoding_that_is_named_takes_the_place_of_the_formulations():
    model = make("mip", encoding=IdentityEncoding)
    assert type(model.hypernetwork.encoding) is IdentityEncoding


@pytest.mark.parametrize("draws", [2, 4, 8])
@pytest.mark.parametrize("formulation", ["default", "mip"])
def test_draws_in_one_call_equal_a_call_for_each(draws, formulation):
    model = make(formulation, Normal(dim=3))
    x, gamma = torch.rand(8, 1, 9, 9), torch.randn(draws, 3)
    together = model(x, gamma)
    one_by_one = torch.cat([model(part, g) for part, g in zip(x.chunk(draws), gamma, strict=True)])
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-5)


def test_gradients_of_draws_in_one_call_equal_those_of_a_call_for_each():
    model = make("mip")
    x, gamma = torch.rand(6, 1, 8, 8), torch.rand(3, 1)
    model(x, gamma).square().mean().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part, g in zip(x.chunk(3), gamma, strict=True):
        (model(part, g).square().mean() / 3).backward()
    for a, p in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, atol=1e-6, rtol=1e-4)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, scale, power=1):
        return {"y": (self.linear(x) * scale) ** power, "pair": (x, scale)}


@pytest.mark.parametrize("with_statistics", [False, True])
def test_a_primary_may_take_and_return_more_than_one_tensor(with_statistics):
    primary = TwoInputs()
    if with_statistics:  # these make draws run in turn, where vmap cannot
        primary.norm = nn.BatchNorm1d(4)
    model = make(primary=primary)
    x, scale, gamma = torch.rand(6, 4), torch.rand(6, 1), torch.rand(3, 1)
    by_position = model((x, scale, 2), gamma)
    by_name = model({"x": x, "scale": scale, "power": 2}, gamma)
    alone = model((x[2:4], scale[2:4], 2), gamma[1])
    torch.testing.assert_close(by_position["y"], by_name["y"])
    torch.testing.assert_close(by_position["y"][2:4], alone["y"])
    assert torch.equal(by_position["pair"][0], x)


def test_containers_of_tensors_are_split_between_draws_too():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, parts):
            return self.linear(parts["a"] + parts["b"][0])

    model, gamma = make(primary=Sum()), torch.rand(3, 1)
    a, b = torch.rand(6, 4), torch.rand(6, 4)
    together = model(({"a": a, "b": [b]},), gamma)
    alone = model(({"a": a[4:], "b": [b[4:]]},), gamma[2])
    assert together.shape == (6, 2)
    torch.testing.assert_close(together[4:], alone)


def test_a_container_without_tensors_goes_to_each_draw_as_it_is():
    class Resized(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x, size):
            return self.linear(x.reshape(*size, 4))

    model = make(primary=Resized())
    together = model({"x": torch.rand(6, 4), "size": (2,)}, torch.rand(3, 1))
    assert together.shape == (6, 2)


class Averaging(nn.Module):
    """Keeps a moving average by putting a new tensor in the place of its buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.average = 0.5 * self.average + 0.5 * x.mean(0)
        return self.linear(x)


def test_a_primary_may_write_its_buffers_whatever_the_number_of_draws():
    model, x = make(primary=Averaging()), torch.rand(4, 4)
    model(x, torch.rand(2, 1))
    first, second = x[:2].mean(0), x[2:].mean(0)
    torch.testing.assert_close(model.primary.average, 0.25 * first + 0.5 * second)


def test_networks_of_torchvision_are_wrapped_as_they_are():
    primary = torchvision.models.resnet18(num_classes=3)
    model = make(primary=primary, hidden_sizes=[2])
    affine = {n for n, _ in primary.named_parameters() if "bn" in n or "downsample.1" in n}
    assert affine
    assert set(model.layout.shapes) == dict(primary.named_parameters()).keys() - affine
    x = torch.rand(4, 3, 32, 32)
    before = primary.bn1.running_mean.clone()
    model(x, torch.rand(2, 1)).sum().backward()
    assert not torch.equal(primary.bn1.running_mean, before)
    assert primary.bn1.num_batches_tracked == 2
    assert primary.bn1.weight.grad is not None


def test_theta_is_formed_in_float32_under_autocast():
    model, gamma = make(), torch.rand(1)
    expected = model.at(gamma).theta
    with torch.autocast("cpu", torch.bfloat16):
        theta = model.at(gamma).theta
        assert model(torch.rand(2, 1, 8, 8), torch.rand(1)).dtype == torch.bfloat16
    assert all(torch.equal(theta[name], expected[name]) for name in expected)


class Fragile(nn.Linear):
    def forward(self, x):
        raise RuntimeError("in the primary")


def test_nothing_stays_in_the_primary_after_an_exception():
    model = make(primary=Fragile(2, 2))
    before = dict(model.primary.named_parameters())
    with pytest.raises(RuntimeError, match="in the primary"):
        model(torch.rand(2, 2), torch.rand(1))
    after = dict(model.primary.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_a_materialized_network_is_an_ordinary_one_with_the_same_output():
    model = make(primary=torchvision.models.resnet18(num_classes=3), hidden_sizes=[4]).eval()
    x = torch.rand(2, 3, 32, 32)
    network = model.materialize(0.3)
    assert type(network) is torchvision.models.ResNet
    torch.testing.assert_close(network(x), model(x, torch.tensor([0.3])), atol=1e-6, rtol=1e-6)
    torchvision.models.resnet18(num_classes=3).load_state_dict(network.state_dict())


def test_an_unknown_name_or_an_empty_primary_is_refused():
    with pytest.raises(UsageError, match="ReLU has no parameters to predict"):
        make(primary=nn.ReLU())
    with pytest.raises(UsageError, match="'Nope' is not an activation"):
        make(activation="Nope")
    with pytest.raises(UsageError, match=r"hidden_sizes=\[\]"):
        make(hidden_sizes=[])


def test_a_wrong_gamma_is_refused_by_a_call():
    model = make(primary=MultilayerPerceptron(4))
    x = torch.rand(8, 4)
    with pytest.raises(UsageError, match="3 draws, which do not divide"):
        model(x, torch.rand(3, 1))
    with pytest.raises(UsageError, match="outside"):
        model(x, 2.0)
    with pytest.raises(UsageError, match="shape"):
        model(x, torch.rand(4))
    with pytest.raises(UsageError, match="2 draws: materialize takes one"):
        model.materialize(torch.rand(2, 1))


COMPILED = """
import torch
from mip_lightning import HyperModel, Uniform
from mip_lightning.networks import LeNet
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)  # what fusing rounds otherwise is far below what is compared
model = HyperModel(LeNet(), Uniform(0, 1))
x = torch.rand(4, 1, 8, 8)
compiled = torch.compile(model, fullgraph=True)
for gamma in (torch.rand(1), torch.rand(2, 1), torch.rand(4, 1)):
    torch.testing.assert_close(compiled(x, gamma), model(x, gamma), atol=1e-12, rtol=1e-10)
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        network(x, gamma).sum().backward()
        gradients.append([p.grad + 0 for p in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)
for wrong in (torch.rand(1, 2), torch.rand(3, 1)):
    try:
        compiled(x, wrong)
    except Exception as error:
        assert "gamma" in str(error), error
    else:
        raise AssertionError("a gamma of the wrong shape went through")
"""


def test_forward_compiles_as_one_graph():
    # In a process of its own: here every function carries checks of its types.
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=300)


@torch.no_grad()
def test_a_bound_primary_gives_at_each_call_what_run_gives():
    class Closed(nn.Module):
        """Keeps a layer where no replica reaches it."""

        def __init__(self) -> None:
            super().__init__()
            layer = self.layer = nn.Linear(3, 3)
            self.call = lambda x: layer(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.call(x)

    for primary in (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), Closed()):
        model = HyperModel(primary, Uniform(0, 1)).eval()
        gammas = torch.tensor([[0.2], [0.9]]).split(1)
        primaries = [model.at(gamma) for gamma in gammas]
        for x in torch.rand(2, 4, 3):
            for primary, gamma in zip(primaries, gammas, strict=True):
                with torch.no_grad():  # so that it serves more than one call
                    found = primary(x)
                torch.testing.assert_close(found, model(x, gamma))


def test_a_parameter_that_is_gone_is_named():
    model = HyperModel(nn.Sequential(nn.Linear(3, 3)), Uniform())
    torch.nn.utils.parametrizations.weight_norm(model.primary[0])
    with pytest.raises(UsageError, match=r"0\.weight is not a parameter of Sequential any more"):
        model(torch.rand(2, 3), 0.5)
