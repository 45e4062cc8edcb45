"""Networks that rescale by gamma, and how a hypermodel tells them gamma."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mip_lightning import HyperModel, Uniform, UsageError
from mip_lightning.diagnostics.cost import PrimaryCost
from mip_lightning.networks import (
    ConstantWidthUNet,
    ResNetLike,
    ScaleSpaceResNet,
    ScaleSpaceUNet,
)
from mip_lightning.networks.rescaling import as_factor, rescaled_size

FEATURES = (16, 32, 64, 128, 128)
PAIRS = [(ScaleSpaceResNet, ResNetLike), (ScaleSpaceUNet, ConstantWidthUNet)]


def images(*size: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, *size)


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 2) if x.ndim == 4 else F.max_pool3d(x, 2)


def halved(x: torch.Tensor) -> torch.Tensor:
    return scaled(x, 0.5)


def by_hand(network: nn.Module, x: torch.Tensor, downsample: Callable) -> torch.Tensor:
    """What a network computes where each level has half the size of the one above."""
    if isinstance(network, ResNetLike):
        for number, stage in enumerate(network.stages):
            x = stage(downsample(x) if number else x)
        return network.classifier(x.flatten(2).mean(dim=2))
    skips = [network.encoder[0](x)]
    for stage in network.encoder[1:]:
        skips.append(stage(downsample(skips[-1])))
    below = skips.pop()
    for stage in network.decoder:
        below = stage(torch.cat([skips.pop(), scaled(below, 2)], dim=1))
    return network.output(below)


@pytest.mark.parametrize("size", [(64, 96), (16, 32, 48)], ids=["2D", "3D"])
@pytest.mark.parametrize(("rescaling", "pooling"), PAIRS)
def test_the_same_weights_halve_and_double_linearly_or_pool(rescaling, pooling, size):
    network, x = rescaling(spatial_dims=len(size)), images(*size, channels=3)
    if isinstance(network, ScaleSpaceUNet):
        x = x[:, :2]
    expected = by_hand(network, x, halved)
    torch.testing.assert_close(network(x, gamma=0.5), expected, rtol=0, atol=0)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
    ordinary = pooling(spatial_dims=len(size))
    ordinary.load_state_dict(network.state_dict())
    torch.testing.assert_close(ordinary(x), by_hand(ordinary, x, pooled), rtol=0, atol=0)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=3), st.integers(0, 1000))
def test_a_size_is_that_of_exact_arithmetic_however_gamma_is_held(size, thousandths):
    exact = [max(1, length * thousandths // 1000) for length in size]
    gamma = thousandths / 1000
    for held in (gamma, torch.tensor(gamma), torch.tensor(gamma, dtype=torch.float64)):
        assert rescaled_size(size, as_factor(held)) == exact


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


def flops_of(network: nn.Module, x: torch.Tensor, gamma: float) -> float:
    return PrimaryCost(HyperModel(network, Uniform(0, 0.5)), x).flops(torch.tensor([gamma]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("gamma", "sides"), [(0.5, [32, 16, 8, 4, 2]), (0.25, [32, 8, 2, 1, 1])])
def test_the_classifiers_flops_are_those_of_a_hand_count(gamma, sides, dims):
    kernel, by_hand = 3**dims, 2 * FEATURES[-1] * 102
    wide = [2 * side for side in sides[:3]] + ([8, 4] if gamma == 0.5 else [1, 1])
    for side, longer, before, after in zip(sides, wide, (3, *FEATURES), FEATURES, strict=False):
        shortcut = before * after if before != after else 0
        weights = kernel * before * after + kernel * after * after + shortcut
        by_hand += 2 * side ** (dims - 1) * longer * weights
    x = images(*[32] * (dims - 1), 64)
    assert flops_of(ScaleSpaceResNet(spatial_dims=dims), x, gamma) == by_hand
    if gamma == 0.5:
        assert flops_of(ResNetLike(spatial_dims=dims), x, 0.1) == by_hand


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("gamma", "sides"), [(0.5, [48, 24, 12, 6, 3]), (0.2, [48, 9, 1, 1, 1])])
def test_the_unets_flops_are_those_of_a_hand_count(gamma, sides, dims):
    def convolution(side: int, before: int, after: int) -> int:
        return 2 * 3**dims * before * after * side**dims

    by_hand = convolution(sides[0], 1, 8) + convolution(sides[0], 8, 8)
    by_hand += sum(2 * convolution(side, 8, 8) for side in sides[1:])
    by_hand += sum(convolution(s, 16, 8) + convolution(s, 8, 8) for s in sides[:-1])
    by_hand += convolution(sides[0], 8, 5)
    x = images(*[48] * dims, channels=1)
    assert flops_of(ScaleSpaceUNet(1, 5, dims, features=8), x, gamma) == by_hand
    if gamma == 0.5:
        assert flops_of(ConstantWidthUNet(1, 5, dims, features=8), x, 0.1) == by_hand


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
    assert model.at(3.0)(x).flatten().tolist() == [3.0] * 4


class ByKeyword(Told):
    """Takes any number of inputs, and gamma by its name alone."""

    def forward(self, *inputs: torch.Tensor, gamma: float | torch.Tensor = 0.5) -> torch.Tensor:
        return super().forward(sum(inputs), torch.as_tensor(gamma)[0])


def test_a_gamma_that_goes_by_its_name_alone_is_told_beside_any_number_of_inputs():
    model, x = HyperModel(ByKeyword(), Uniform(2.0, 6.0)), torch.ones(4, 1)
    assert model((x, x, x), torch.tensor([3.0])).flatten().tolist() == [3.0] * 4


def test_a_materialized_network_gets_gamma_as_the_hypermodel_gives_it():
    seen = []

    class Seen(Told):
        def forward(self, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
            seen.append(gamma)
            return super().forward(x, gamma[0])

    model, x = HyperModel(Seen(), Uniform(2.0, 6.0)), torch.ones(4, 1)
    torch.testing.assert_close(model.materialize(3.0)(x), model(x, 3.0))
    assert [(gamma.shape, gamma.device.type) for gamma in seen] == [((1,), "cpu")] * 2


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
