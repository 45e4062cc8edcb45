"""theta0: where it starts from, how it trains; and what decays."""

import pytest
import torch
from helpers import output_at
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from mip_lightning import (
    HyperLightningModule,
    HyperModel,
    HypernetworkConfig,
    ThetaConfig,
    Uniform,
    UsageError,
)
from mip_lightning.networks import LeNet

SMALL = HypernetworkConfig(hidden_sizes=[4, 8])
ZERO = HypernetworkConfig(hidden_sizes=[4, 8], head_init="zero")


class Fit(HyperLightningModule):
    def loss(self, batch, primary):
        x, y = batch
        return F.mse_loss(primary(x), y)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))


def fit(model: Fit, **options) -> Trainer:
    data = torch.rand(32, 4, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = DataLoader(TensorDataset(data, data), 8)
    trainer.fit(model, loader, loader)
    return trainer


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {
            "state_dict": {f"model.net.{n}": v for n, v in state.items()}
            | {"loss.w": torch.ones(1)}
        },
    ],
    ids=["plain", "checkpoint", "prefix", "prefix and more"],
)
def test_with_a_zero_head_a_pretrained_primary_is_computed_whatever_gamma_is(tmp_path, wrap):
    trained = resnet18(num_classes=3)
    trained.bn1.running_mean.uniform_()
    path = str(tmp_path / "trained.pt")
    torch.save(wrap(trained.state_dict()), path)
    theta = ThetaConfig(pretrained=path)
    model = HyperModel(resnet18(num_classes=3), Uniform(), hypernetwork=ZERO, theta=theta).eval()
    x = torch.rand(2, 3, 32, 32)
    for gamma in (0.0, 0.4, 1.0):
        assert torch.equal(model(x, gamma), trained.eval()(x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("0.weight"), r"has no '0.weight'; near it are"),
        (lambda s: s.update({"3.weight": torch.ones(1)}), r"holds '3.weight', which Sequential"),
        (
            lambda s: s.update({"0.weight": torch.ones(1)}),
            r"0.weight is \(1,\) there, \(3, 4\) here",
        ),
        (lambda s: s.update({f"ema.{n}": t for n, t in s.items()}), "holds this network more than"),
        (lambda s: s.clear(), "holds no weights"),
    ],
)
def test_a_file_of_another_network_is_refused_by_name(tmp_path, change, says):
    state = network().state_dict()
    change(state)
    path = str(tmp_path / "trained.pt")
    torch.save(dict(state), path)
    with pytest.raises(UsageError, match=says):
        HyperModel(network(), Uniform(), theta=ThetaConfig(pretrained=path))


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        HyperModel(network(), Uniform(), theta=ThetaConfig(pretrained="nothing.pt"))
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(UsageError, match="not a file of plain values"):
        HyperModel(network(), Uniform(), theta=ThetaConfig(pretrained=str(tmp_path / "text.pt")))


@pytest.mark.parametrize(
    ("formulation", "head_init", "says"),
    [("default", "zero", "theta0 starts at zero"), ("mip", "hyperfan_in", "change pretrained")],
)
def test_what_would_change_pretrained_weights_is_refused(tmp_path, formulation, head_init, says):
    path = str(tmp_path / "trained.pt")
    torch.save(network().state_dict(), path)
    config = HypernetworkConfig(head_init=head_init)
    with pytest.raises(UsageError, match=says):
        HyperModel(network(), Uniform(), formulation, config, ThetaConfig(pretrained=path))


def test_parts_of_the_model_are_named_groups_with_their_own_options():
    options = {"theta0": {"lr": 1e-5}, "head": {"lr": 1e-2, "weight_decay": 0.5}}
    model = Fit(network(), Uniform(), hypernetwork=SMALL, group_options=options)
    groups = {group["name"]: group for group in fit(model).optimizers[0].param_groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "theta0": (1e-5, 0),
        "ordinary": (3e-4, 0),
        "trunk": (3e-4, 0),
        "head": (1e-2, 0.5),
    }
    sizes = {name: sum(p.numel() for p in group["params"]) for name, group in groups.items()}
    assert sizes == {"theta0": 15 + 16, "ordinary": 6, "trunk": 12 + 40, "head": 31 * 8}


def test_an_option_that_the_optimizer_does_not_have_is_refused():
    model = Fit(network(), Uniform(), group_options={"head": {"learning_rate": 1.0}})
    with pytest.raises(UsageError, match=r"Adam has no 'learning_rate' for head: it has lr"):
        fit(model)


def test_a_frozen_theta0_stays_and_the_rest_trains():
    model = Fit(network(), Uniform(), hypernetwork=SMALL, theta=ThetaConfig(frozen=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model)
    after = model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {f"model.primary.{name}" for name in model.model.theta0} <= same
    assert "model.primary.1.weight" not in same
    assert "model.hypernetwork.head.weight" not in same


@pytest.mark.parametrize("draws", [1, 4])
def test_the_decay_of_theta_is_that_of_its_squared_norm_averaged_over_draws(draws, monkeypatch):
    decay, batch = 0.7, [torch.ones(8, 4), torch.ones(8, 4)]
    gamma = Uniform().sample(draws, torch.Generator().manual_seed(0))
    monkeypatch.setattr(Fit, "sample_gamma", lambda self, batch, index: gamma)
    monkeypatch.setattr(Fit, "log", lambda self, name, value, batch_size: None)  # no trainer here
    objectives = []
    for theta in (ThetaConfig(weight_decay=decay), ThetaConfig()):
        torch.manual_seed(0)
        model = Fit(network(), Uniform(), hypernetwork=SMALL, theta=theta, draws_per_batch=draws)
        objectives.append(model.training_step(batch, 0))
    thetas = [model.model.at(g).theta.values() for g in gamma]
    square = sum(tensor.square().sum() for theta in thetas for tensor in theta)
    torch.testing.assert_close(objectives[0], objectives[1] + decay / 2 * square / draws)


def test_weights_are_predicted_once_a_step_however_often_the_loss_calls_the_primary():
    class Twice(Fit):
        def loss(self, batch, primary):
            return primary(batch[0]).mean() + primary(batch[1]).mean()

    model = Twice(LeNet(), Uniform(), hypernetwork=SMALL)
    calls = []
    model.model.hypernetwork.register_forward_hook(lambda *args: calls.append(1))
    images = torch.rand(2, 1, 8, 8)
    output_at(model, [images, images], torch.tensor([[0.5]]))
    assert len(calls) == 1


def test_a_negative_decay_is_refused():
    with pytest.raises(UsageError, match="weight_decay=-1"):
        ThetaConfig(weight_decay=-1.0)
