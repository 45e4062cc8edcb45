import pytest
import torch
from torch import nn

from mip_lightning import UsageError
from mip_lightning.networks import LeNet, MultilayerPerceptron


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (64, 32)])
def test_lenet_takes_images_of_any_size_from_8_by_8(size):
    assert LeNet(7, in_channels=2)(torch.rand(3, 2, *size)).shape == (3, 7)


def test_lenet_has_the_papers_features():
    convolutions = [m for m in LeNet().modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [6, 16, 32, 64]
    by_hand = 6 * 25 + 6 + 16 * 6 * 25 + 16 + 32 * 16 * 9 + 32 + 64 * 32 * 9 + 64
    by_hand += 256 * 84 + 84 + 84 * 10 + 10
    assert sum(p.numel() for p in LeNet().parameters()) == by_hand


def test_lenet_refuses_an_image_that_is_too_small():
    with pytest.raises(UsageError, match="images of 8 x 7 pixels"):
        LeNet()(torch.rand(1, 1, 8, 7))


def test_a_perceptron_flattens_its_input():
    network = MultilayerPerceptron(12, num_classes=4, hidden_sizes=[5, 6])
    assert network(torch.rand(2, 3, 4)).shape == (2, 4)
    linear = [(m.in_features, m.out_features) for m in network.layers if hasattr(m, "in_features")]
    assert linear == [(12, 5), (5, 6), (6, 4)]


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_a_lenet_normalizes_after_each_convolution_where_asked_for(normalization):
    network = LeNet(normalization=normalization)
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    layers = list(network.features)
    after = [layers[i + 1] for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    kind = {"none": nn.ReLU, "batch": nn.BatchNorm2d, "layer": nn.GroupNorm}[normalization]
    assert [type(layer) for layer in after] == [kind] * 4
    if normalization == "layer":
        x = torch.rand(2, 6, 5, 5)
        torch.testing.assert_close(after[0](x), nn.functional.layer_norm(x, (6, 5, 5)))
