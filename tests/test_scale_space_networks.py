"""Networks that rescale by gamma, and how a hypermodel tells them gamma."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mip_lightning import HyperModel, Uniform, UsageError
from mip_lightning.networks import (
    ConstantWidthUNet,
    ResNetLike,
    ScaleSpaceResNet,
    ScaleSpaceUNet,
)
from mip_lightning.networks.rescaling import rescaled_size
from mip_lightning.primary_cost import PrimaryCost

FEATURES = (16, 32, 64, 128, 128)


def images(*size: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, *size)


def halved(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


def test_at_one_half_the_classifier_is_that_of_ordinary_bilinear_halving():
    network, x = ScaleSpaceResNet(num_classes=7), images(64, 96)
    features = x
    for number, stage in enumerate(network.stages):
        features = stage(halved(features) if number else features)
    expected = network.classifier(features.mean(dim=(2, 3)))
    torch.testing.assert_close(network(x, gamma=0.5), expected, rtol=0, atol=0)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_at_one_half_the_unet_is_that_of_ordinary_bilinear_halving_and_doubling():
    network, x = (
        ScaleSpaceUNet(in_channels=1, out_channels=5, features=4),
        images(32, 48, channels=1),
    )
    skips = [network.encoder[0](x)]
    for stage in network.encoder[1:]:
        skips.append(stage(halved(skips[-1])))
    below = skips.pop()
    for stage in network.decoder:
        doubled = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        below = stage(torch.cat([skips.pop(), doubled], dim=1))
    torch.testing.assert_close(network(x, 0.5), network.output(below), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rescaling", "pooling", "channels"),
    [(ScaleSpaceResNet, ResNetLike, 3), (ScaleSpaceUNet, ConstantWidthUNet, 2)],
)
def test_the_network_with_ordinary_pooling_has_the_same_weights(rescaling, pooling, channels):
    network = pooling()
    network.load_state_dict(rescaling().state_dict())
    x = images(32, 32, channels=channels)
    assert network(x).shape == rescaling()(x, 0.3).shape


@given(st.lists(st.integers(1, 500), min_size=1, max_size=3), st.floats(0, 1))
def test_no_axis_shrinks_below_a_pixel_or_grows(size, factor):
    for before, after in zip(size, rescaled_size(size, factor), strict=True):
        assert 1 <= after <= before
        assert after == 1 or after <= before * factor < after + 1


@pytest.mark.parametrize("gamma", [0.0, 1e-9, 0.01, 0.5])
@pytest.mark.parametrize("network", [ScaleSpaceResNet(), ScaleSpaceUNet(3, 2, features=4)])
def test_any_gamma_and_any_size_train(network, gamma):
    x = images(5, 3).requires_grad_()
    network(x, gamma).square().mean().backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("network", [ScaleSpaceResNet(), ScaleSpaceUNet()])
@pytest.mark.parametrize(
    ("gamma", "says"),
    [(-0.1, "gamma=-0.1"), (1.5, "gamma=1.5"), (torch.rand(2), "holds 2 numbers")],
)
def test_what_is_no_factor_is_refused(network, gamma, says):
    with pytest.raises(UsageError, match=says):
        network(images(16, 16), gamma)


@pytest.mark.parametrize("normalization", ["none", "batch", "layer", "group"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_classifier_takes_images_and_volumes_with_each_normalization(
    normalization, spatial_dims
):
    options = {"spatial_dims": spatial_dims, "normalization": normalization, "num_classes": 3}
    x = images(*[20] * spatial_dims)
    assert ScaleSpaceResNet(**options)(x, 0.3).shape == (2, 3)
    assert ResNetLike(**options)(x).shape == (2, 3)
    predicted = HyperModel(ScaleSpaceResNet(**options), Uniform(0, 0.5)).theta0
    dimensions = {value.ndim for name, value in predicted.items() if "weight" in name}
    assert dimensions == {2, 2 + spatial_dims}  # convolutions and the last layer, no affine one


def test_the_unet_takes_volumes():
    assert ScaleSpaceUNet(1, 2, 3, features=4)(images(9, 12, 10, channels=1), 0.4).shape == (
        *(2, 2, 9, 12, 10),
    )


@torch.no_grad()
def test_features_keep_their_scale_without_normalization():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 64, 64)
    for stage in ResNetLike().stages:
        after = stage(x)
        assert 0.3 < float(after.square().mean() / x.square().mean()) < 3.0
        x = F.max_pool2d(after, 2)


def test_what_is_too_small_for_pooling_or_has_other_dimensions_is_refused():
    with pytest.raises(UsageError, match="images of 8 x 32: a ResNetLike"):
        ResNetLike()(images(8, 32))
    with pytest.raises(UsageError, match="spatial_dims=2"):
        ScaleSpaceResNet()(images(8, 8, 8), 0.5)
    with pytest.raises(UsageError, match="num_classes=0"):
        ResNetLike(num_classes=0)
    with pytest.raises(UsageError, match=r"features=\[\]"):
        ResNetLike(features=[])


@pytest.mark.parametrize(("gamma", "sides"), [(0.5, [32, 16, 8, 4, 2]), (0.3, [32, 9, 2, 1, 1])])
def test_the_classifiers_flops_are_those_of_a_hand_count(gamma, sides):
    by_hand = 2 * FEATURES[-1] * 102
    for side, before, after in zip(sides, (3, *FEATURES), FEATURES, strict=False):
        shortcut = before * after if before != after else 0
        by_hand += 2 * side**2 * (9 * before * after + 9 * after * after + shortcut)
    cost = PrimaryCost(HyperModel(ScaleSpaceResNet(), Uniform(0, 0.5)), images(32, 32))
    assert cost.flops(torch.tensor([gamma])) == by_hand


@pytest.mark.parametrize(("gamma", "sides"), [(0.5, [48, 24, 12, 6, 3]), (0.2, [48, 9, 1, 1, 1])])
def test_the_unets_flops_are_those_of_a_hand_count(gamma, sides):
    def convolution(side: int, before: int, after: int) -> int:
        return 2 * 9 * before * after * side**2

    by_hand = convolution(sides[0], 1, 32) + convolution(sides[0], 32, 32)
    by_hand += sum(2 * convolution(side, 32, 32) for side in sides[1:])
    by_hand += sum(convolution(s, 64, 32) + convolution(s, 32, 32) for s in sides[:-1])
    by_hand += convolution(sides[0], 32, 5)
    model = HyperModel(ScaleSpaceUNet(1, 5), Uniform(0, 0.5))
    cost = PrimaryCost(model, images(48, 48, channels=1))
    assert cost.flops(torch.tensor([gamma])) == by_hand


class Told(nn.Module):
    """Gives back the gamma it gets, one for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return self.scale(x) * 0 + gamma


def test_a_primary_that_asks_for_gamma_gets_it_raw():
    model, x = HyperModel(Told(), Uniform(2.0, 6.0)), torch.ones(4, 1)
    assert model(x, torch.tensor([3.0])).flatten().tolist() == [3.0] * 4
    assert model(x, torch.tensor([[3.0], [5.0]])).flatten().tolist() == [3.0, 3.0, 5.0, 5.0]
    assert model({"x": x, "gamma": torch.tensor(9.0)}, 3.0).flatten().tolist() == [9.0] * 4
    assert model((x, torch.tensor(9.0)), 3.0).flatten().tolist() == [9.0] * 4
    with pytest.raises(UsageError, match="asks for gamma"):
        model.run(model.theta(torch.tensor([3.0])), x)


def test_a_materialized_network_is_at_its_gamma_unless_another_is_given():
    model = HyperModel(ScaleSpaceResNet(), Uniform(0, 0.5))
    x, gamma = images(32, 32), torch.tensor([0.2])
    network = model.materialize(0.2)
    assert type(network) is ScaleSpaceResNet
    assert network.state_dict().keys() == model.primary.state_dict().keys()
    expected = model(x, gamma)
    for same in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(same(x), expected)
    assert not torch.allclose(network(x, gamma=0.4), expected)
    program = torch.export.export(network.eval(), (x,))
    torch.testing.assert_close(program.module()(x), expected)


def test_draws_of_different_sizes_are_those_of_each_alone():
    model = HyperModel(ScaleSpaceUNet(1, 2, features=4), Uniform(0, 0.5))
    x, gammas = images(16, 16, channels=1, batch=4), torch.tensor([[0.1], [0.45]])
    alone = [model(part, gamma) for part, gamma in zip(x.chunk(2), gammas, strict=True)]
    torch.testing.assert_close(model(x, gammas), torch.cat(alone))
