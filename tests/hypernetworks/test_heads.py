import copy
import math
from functools import partial
from typing import get_args

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torchvision.models import resnet50

from mip_lightning import (
    ChunkedHead,
    DenseHead,
    DirectionEncoding,
    FactoredAdam,
    HyperModel,
    HypernetworkConfig,
    LowRankHead,
    Normal,
    ThetaConfig,
    Uniform,
    UsageError,
)
from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.hypernetworks._initialization import HeadInit, HeadInitialization
from mip_lightning.hypernetworks._parameter_layout import ParameterLayout
from mip_lightning.hypernetworks.heads import Head
from mip_lightning.networks import LeNet
from mip_lightning.trainer.export import export_network

HEADS = [DenseHead, partial(LowRankHead, rank=2), partial(ChunkedHead, chunk_size=100)]
NAMES = ["dense", "low rank", "chunked"]
LAYOUT = ParameterLayout(
    {
        "weight": torch.Size([30, 10, 3, 3]),
        "bias": torch.Size([30]),
        "linear": torch.Size([20, 40]),
        "scale": torch.Size([]),
    }
)
TARGETS = (0.04, 0.0, 0.01, 0.0)


def unit_hidden(num: int, width: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(num, width), dim=1)


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_each_change_starts_with_its_target_variance(head):
    hidden = unit_hidden(50, 64) * math.sqrt(3.0)
    changes = LAYOUT.split(
        torch.stack([head(64, LAYOUT, HeadInit(TARGETS, power=3.0))(h[None])[0] for h in hidden])
    )
    for (name, change), target in zip(changes.items(), TARGETS, strict=True):
        assert change.var().item() == pytest.approx(target, rel=0.15), name


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_zero_head_changes_nothing_at_first_and_learns(head):
    made: Head = head(8, LAYOUT, HeadInit(TARGETS, zero=True))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    hidden, wanted = unit_hidden(4, 8), torch.randn(4, LAYOUT.num_predicted)
    assert made(hidden).abs().max() == 0
    losses = []
    for _ in range(3):
        loss = (made(hidden) - wanted).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]
    changes = LAYOUT.split(made(hidden).detach())
    assert all(change.abs().sum() > 0 for change in changes.values())


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_draw_does_not_depend_on_the_others(head):
    made = head(8, LAYOUT, HeadInit(TARGETS))
    hidden = unit_hidden(3, 8)
    together = made(hidden)
    alone = torch.cat([made(h[None]) for h in hidden])
    torch.testing.assert_close(together, alone)


def test_a_low_rank_change_is_a_product_of_its_two_factors():
    made = LowRankHead(8, LAYOUT, HeadInit(TARGETS), rank=2)
    changes = LAYOUT.split(made(unit_hidden(5, 8)).detach().double())
    assert torch.linalg.matrix_rank(changes["weight"].flatten(2), tol=1e-5).tolist() == [2] * 5
    assert torch.linalg.matrix_rank(changes["linear"], tol=1e-5).tolist() == [2] * 5
    predicted = 2 * (30 + 90) + 30 + 2 * (20 + 40) + 1
    assert made.weight.shape == (predicted, 8)


def test_a_chunked_head_is_one_small_network_for_all_matrices():
    made = ChunkedHead(16, LAYOUT, HeadInit(TARGETS), chunk_size=100, embedding_size=4)
    numbers = 35 * 4 + (16 * 16 + 16) + 4 * 16 + 16 * 100 + (30 + 1) * 16
    assert sum(p.numel() for p in made.parameters()) == numbers


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_model_with_any_head_trains_and_materializes(head):
    config = HypernetworkConfig(hidden_sizes=[4, 8], head=head)
    model, x = HyperModel(LeNet(), Uniform(), hypernetwork=config), torch.rand(6, 1, 8, 8)
    model(x, torch.rand(3, 1)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model.materialize(0.7)(x), model(x, 0.7), atol=1e-6, rtol=1e-5)
    assert model.summary().num_head == sum(p.numel() for p in model.hypernetwork.head.parameters())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LowRankHead(4, LAYOUT, HeadInit(TARGETS), rank=0), "rank=0"),
        (lambda: ChunkedHead(4, LAYOUT, HeadInit(TARGETS), chunk_size=0), "chunk_size=0"),
    ],
)
def test_an_impossible_head_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.slow
def test_a_resnet50_trains_a_step_with_the_low_rank_head():
    config = HypernetworkConfig(head=partial(LowRankHead, rank=4))
    model = HyperModel(resnet50(), Uniform(), hypernetwork=config)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x = torch.rand(2, 3, 64, 64)
    before = model.eval()(x, 0.2).detach()
    model.train()(x, 0.2).square().mean().backward()
    optimizer.step()
    assert model.summary().num_predicted > 25_000_000
    assert not torch.equal(model.eval()(x, 0.2).detach(), before)


# --- how they start ---


def deep(width: int, depth: int, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers)


def mean_squares(model: HyperModel, x: torch.Tensor, num: int) -> torch.Tensor:
    """Mean square after each layer's activation, averaged over hypernetworks and gamma."""
    squares = []
    for gamma in torch.rand(num):
        network, value, row = model.materialize(float(gamma)), x, []
        for layer in network:
            value = layer(value)
            if isinstance(layer, nn.ReLU):
                row.append(value.square().mean())
        squares.append(torch.stack(row))
    return torch.stack(squares).mean(dim=0).detach()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("formulation", ["input", "mip"])
def test_with_hyperfan_in_activations_keep_their_scale_over_ten_layers(bias, formulation):
    x = torch.randn(256, 128)
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        config = HypernetworkConfig([16, 256], head_init="hyperfan_in")
        model = HyperModel(deep(128, 10, bias), Uniform(), formulation, config)
        found.append(mean_squares(model, x, 1))
    squares = torch.stack(found).median(dim=0).values
    assert 0.3 < squares[-1] / x.square().mean() < 3.0
    ordinary = []
    for seed in range(5):
        torch.manual_seed(seed)
        config = HypernetworkConfig([16, 256])
        model = HyperModel(deep(128, 10, bias), Uniform(), "input", config)
        ordinary.append(mean_squares(model, x, 1))
    assert torch.stack(ordinary).median(dim=0).values[-1] < 1e-3  # what it mends


@pytest.mark.parametrize(
    ("head_init", "has_bias", "expected"),
    [
        # Fan-in 45, fan-out 90 of a 3 x 3 convolution from 5 to 10 features; 2 is for ReLU.
        ("hyperfan_in", True, {"weight": 2 / 45 / 2, "bias": 1.0}),
        ("hyperfan_in", False, {"weight": 2 / 45}),
        ("hyperfan_out", True, {"weight": 2 / 90, "bias": 2 * (1 - 45 / 90)}),
    ],
)
def test_hyperfan_predicts_the_variances_of_the_published_table(head_init, has_bias, expected):
    found: dict[str, list[torch.Tensor]] = {name: [] for name in expected}
    for seed in range(200):
        torch.manual_seed(seed)
        config = HypernetworkConfig([64, 64], head_init=head_init)
        model = HyperModel(nn.Conv2d(5, 10, 3, bias=has_bias), Uniform(), "input", config)
        for name, value in model.at(torch.rand(1)).theta.items():
            found[name].append(value.detach().flatten())
    for name, variance in expected.items():
        assert torch.cat(found[name]).var().item() == pytest.approx(variance, rel=0.15), name


def test_hyperfan_shares_the_variance_with_theta0_which_keeps_its_direction():
    primary = nn.Linear(50, 40)
    before = primary.weight.detach().clone()
    model = HyperModel(primary, Uniform(), hypernetwork=HypernetworkConfig(head_init="hyperfan_in"))
    after = model.primary.weight.detach()
    assert after.var(correction=0).item() == pytest.approx(0.5 * 2 / 50 / 2)
    torch.testing.assert_close(after / after.norm(), before / before.norm())


@pytest.mark.parametrize("dim", [1, 8, 32])
def test_calibrated_meets_its_target_whatever_the_seed_and_number_of_inputs(dim):
    gain_squared = 2 / (1 + 0.01**2)
    for seed in range(5):
        torch.manual_seed(seed)
        config = HypernetworkConfig(head_init="calibrated")
        model = HyperModel(nn.Linear(100, 100), Normal(dim=dim), "input", config)
        stds = [model.at(g).theta["weight"].square().mean() for g in model.prior.grid(64)]
        found = torch.stack(stds).mean().item()
        assert found == pytest.approx(gain_squared / 100**2, rel=0.1)


def test_kaiming_fan_in_takes_the_last_hidden_width():
    torch.manual_seed(0)
    config = HypernetworkConfig([16, 100], head_init="kaiming_fan_in")
    model = HyperModel(nn.Linear(100, 100), Uniform(), hypernetwork=config)
    gain_squared = 2 / (1 + 0.01**2)
    rows = model.hypernetwork.head.weight[: 100 * 100]
    assert rows.var().item() == pytest.approx(gain_squared / 100, rel=0.05)
    first, second = (m for m in model.hypernetwork.trunk if isinstance(m, nn.Linear))
    assert second.weight.var().item() == pytest.approx(gain_squared / 16, rel=0.2)
    assert first.weight.var().item() == pytest.approx(gain_squared / 2, rel=0.6)


# --- baselines of the paper ---


def test_layer_norm_in_the_trunk_makes_the_default_formulation_forget_the_magnitude():
    config = HypernetworkConfig(layer_norm=True)
    model = HyperModel(LeNet(), Uniform(0.1, 10), "default", config)
    thetas = [model.at(torch.tensor([gamma])).theta["features.0.weight"] for gamma in (0.5, 5.0)]
    torch.testing.assert_close(*thetas, rtol=1e-3, atol=1e-4)


def test_the_direction_encoding_keeps_one_norm_and_only_the_direction():
    encoding = DirectionEncoding(Normal(dim=3))
    gamma = torch.randn(10, 3)
    torch.testing.assert_close(encoding(gamma).norm(dim=1), torch.ones(10))
    torch.testing.assert_close(encoding(gamma), encoding(5 * gamma))
    assert torch.equal(encoding(torch.zeros(1, 3)), torch.zeros(1, 3))


@pytest.mark.parametrize("formulation", ["default", "mip"])
def test_weight_normalization_gives_each_output_channel_its_own_learned_norm(formulation):
    primary = nn.Conv2d(3, 4, 3)
    norms = primary.weight.detach().flatten(1).norm(dim=1)
    model = HyperModel(primary, Uniform(0.1, 1), formulation, theta=ThetaConfig(weight_norm=True))
    for gamma in (torch.tensor([0.2]), torch.tensor([[0.2], [0.9]])):
        theta = model.at(gamma).theta
        found = theta["weight"].flatten(-3).norm(dim=-1)
        torch.testing.assert_close(found, norms.expand_as(found))
    reference = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    direction = (
        model.theta0["weight"]
        + model.layout.split(model.hypernetwork(torch.tensor([[0.2]]))[0])["weight"]
    ).detach()
    reference.weight = direction
    with torch.no_grad():
        reference.parametrizations.weight.original0.copy_(norms.view(-1, 1, 1, 1))
    torch.testing.assert_close(model.at(torch.tensor([0.2])).theta["weight"], reference.weight)
    model(torch.rand(2, 3, 5, 5), 0.5).sum().backward()
    assert model.weight_norm.magnitudes[0].grad.abs().sum() > 0


# --- parameters without dimensions, or without elements ---


class Scaled(nn.Module):
    """As ReZero: a scale of no dimensions, before or behind the other parameters or alone."""

    def __init__(self, order: str, in_turn: bool = False):
        super().__init__()
        for name in order.split():
            if name == "alpha":
                self.alpha = nn.Parameter(torch.tensor(0.7))
            else:
                self.linear = nn.Linear(4, 4)
        if in_turn:  # a layer in training that has buffers
            self.statistics = nn.BatchNorm1d(1)

    def forward(self, x):
        return x + self.alpha * (self.linear(x) if hasattr(self, "linear") else x.square())


def lively(model: HyperModel) -> HyperModel:
    with torch.no_grad():
        for parameter in model.hypernetwork.head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def calls_of_the_primary(model: HyperModel, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    primary = copy.deepcopy(model.primary)
    parts = zip(x.chunk(len(gamma)), gamma, strict=True)
    return torch.cat(
        [functional_call(primary, model.at(own).theta, (part,)) for part, own in parts]
    )


@pytest.mark.parametrize(
    ("order", "head_init"),
    [
        *[("alpha linear", head_init) for head_init in get_args(HeadInitialization)],
        ("linear alpha", "kaiming_fan_out"),
        ("alpha", "kaiming_fan_out"),
    ],
)
@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_parameter_without_dimensions_is_predicted(head, order, head_init):
    config = HypernetworkConfig([4, 8], head=head, head_init=head_init)
    for in_turn in (False, True):
        model = HyperModel(Scaled(order, in_turn), Uniform(), hypernetwork=config)
        # One number does not vary, so that hyperfan neither scales it nor gives it a variance.
        torch.testing.assert_close(model.at(torch.rand(1)).theta["alpha"], torch.tensor(0.7))
        lively(model)
        x = torch.rand(6, 4)
        for num_draws in (1, 3, 6) if not in_turn else (1, 3):
            gamma = torch.rand(num_draws, 1)
            theta = model.at(gamma).theta
            assert theta["alpha"].shape == (num_draws,)
            assert theta["alpha"].unique().numel() == num_draws
            output = model(x, gamma)
            torch.testing.assert_close(output, calls_of_the_primary(model, x, gamma))
        output.sum().backward()
        assert model.theta0["alpha"].grad != 0
        alone = model.materialize(0.3)
        assert alone.alpha.shape == ()
        torch.testing.assert_close(alone(x), model(x, 0.3))


@pytest.mark.parametrize("formulation", ["default", "input", "output", "mip"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_parameter_without_dimensions_is_in_every_formulation(formulation, weight_norm, tmp_path):
    theta = ThetaConfig(weight_norm=weight_norm, frozen=True)
    model = HyperModel(Scaled("alpha linear"), Uniform(0.1, 1), formulation, theta=theta)
    before = model.theta0["alpha"].clone()
    assert before == (0.7 if formulation in ("output", "mip") else 0.0)
    x, gamma = torch.rand(6, 4), torch.rand(3, 1) / 2 + 0.2
    torch.testing.assert_close(lively(model)(x, gamma), calls_of_the_primary(model, x, gamma))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model(x, gamma).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.theta0["alpha"], before)
    export_network(model.materialize(0.3), x, tmp_path / "network.pt", "state_dict")
    again = Scaled("alpha linear")
    again.load_state_dict(torch.load(tmp_path / "network.pt"))
    torch.testing.assert_close(again(x), model(x, 0.3))


@pytest.mark.parametrize("num_draws", [1, 3])
def test_a_factored_step_of_a_parameter_without_dimensions_is_that_of_torch(num_draws, monkeypatch):
    monkeypatch.setattr("mip_lightning.functional.linear.MIN_FACTORED", 1)
    model = HyperModel(Scaled("alpha linear"), Uniform(), hypernetwork=HypernetworkConfig([4, 8]))
    other, x = copy.deepcopy(model), torch.rand(6, 4)
    gamma = torch.rand(num_draws, 1)
    for own, optimizer in ((model, FactoredAdam), (other, torch.optim.Adam)):
        stepping = optimizer(own.parameters(), lr=1e-2)
        for _ in range(3):
            stepping.zero_grad()
            own(x, gamma).square().sum().backward()
            factored = isinstance(own.hypernetwork.head.weight.grad, FactoredGradient)
            assert factored == (own is model)
            stepping.step()
    assert model.theta0["alpha"] != 0.7
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head_init", get_args(HeadInitialization))
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)])
def test_a_parameter_without_elements_is_left_out(shape, head_init):
    primary = Scaled("linear alpha")
    primary.empty = nn.Parameter(torch.empty(shape))
    config = HypernetworkConfig([4, 8], head_init=head_init)
    model = HyperModel(primary, Uniform(), hypernetwork=config)
    assert set(model.layout.shapes) == {"linear.weight", "linear.bias", "alpha"}
    x, gamma = torch.rand(6, 4), torch.rand(3, 1)
    torch.testing.assert_close(model(x, gamma), calls_of_the_primary(model, x, gamma))
    with pytest.raises(UsageError, match="selects only empty, which has no elements"):
        HyperModel(primary, Uniform(), theta=ThetaConfig(["empty"]))
