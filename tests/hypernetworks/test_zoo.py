"""Networks that somebody else wrote are primaries as they are: torchvision's, MONAI's, PyTorch's.

Each is wrapped with a hypernetwork that predicts no change at first, so that the network itself,
which knows nothing of hypernetworks, tells what must come out.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from mip_lightning import HyperModel, HypernetworkConfig, ThetaConfig, Uniform
from mip_lightning.hypernetworks.heads import LowRankHead
from mip_lightning.utilities.nested import as_arguments, tensors_in

with warnings.catch_warnings():  # MONAI calls what torch deprecates
    warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
    from monai.networks import nets


class Case(NamedTuple):
    """How to build a network, shapes of its inputs, and which of its weights are predicted."""

    build: Callable[[], nn.Module]
    shapes: Sequence[tuple[int, ...]]
    predicted: Sequence[str] | None = None


class Zoo(NamedTuple):
    """A network's constructor, inputs of two samples, its outputs of them, and its hypermodel."""

    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    expected: Any
    model: HyperModel


class BareParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3, 4))

    def forward(self, x):
        return {"scaled": x * self.scale, "pair": (x @ self.scale.T, x + self.scale)}


class TiedAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x).relu())


def monai_cases(dimensions: int) -> dict[str, Case]:
    image, pair = (2, 1, *[32] * dimensions), (2, 2, *[32] * dimensions)
    # The smallest that leaves InstanceNorm more than one element at a 32nd of its size.
    long_image = (2, 1, 64, *[32] * (dimensions - 1))
    unet = partial(nets.UNet, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    basic_unet = partial(nets.BasicUNet, features=(4, 4, 8, 8, 16, 4))
    voxelmorph_unet = partial(nets.VoxelMorphUNet, dimensions, 2, dimensions, (4, 4, 8, 8), (4, 4))
    swin_unetr = partial(nets.SwinUNETR, depths=(1,) * 4, feature_size=12)
    return {
        f"monai_unet_{dimensions}d": Case(partial(unet, dimensions, 1, 2), [image]),
        f"monai_basic_unet_{dimensions}d": Case(partial(basic_unet, dimensions, 1, 2), [image]),
        f"monai_voxelmorph_unet_{dimensions}d": Case(voxelmorph_unet, [pair]),
        f"monai_voxelmorph_{dimensions}d": Case(
            lambda: nets.VoxelMorph(voxelmorph_unet(), spatial_dims=dimensions), [image, image]
        ),
        f"monai_swin_unetr_{dimensions}d": Case(
            partial(swin_unetr, 1, 2, spatial_dims=dimensions), [long_image]
        ),
    }


TOKENS = (2, 5, 8)
OTHERS = (
    monai_cases(2)
    | monai_cases(3)
    | {
        "lraspp_mobilenet_v3_large": Case(
            partial(models.segmentation.lraspp_mobilenet_v3_large, weights_backbone=None),
            [(2, 3, 64, 64)],
        ),
        "small_vision_transformer": Case(
            partial(models.VisionTransformer, 32, 8, 2, 2, hidden_dim=16, mlp_dim=32),
            [(2, 3, 32, 32)],
        ),
        "transformer": Case(
            partial(nn.Transformer, 8, 2, 1, 1, dim_feedforward=16, batch_first=True), [TOKENS] * 2
        ),
        "multihead_attention": Case(
            partial(nn.MultiheadAttention, 8, 2, batch_first=True), [TOKENS] * 3
        ),
        "lstm": Case(partial(nn.LSTM, 8, 6, num_layers=2, batch_first=True), [TOKENS]),
        "gru": Case(partial(nn.GRU, 8, 6, bidirectional=True, batch_first=True), [TOKENS]),
        "bare_parameter": Case(BareParameter, [(2, 3, 4)]),
        "tied_weights": Case(TiedAutoencoder, [(2, 6)]),
    }
)

CLASSIFIERS = models.list_models(module=models)
SIDES = {
    "inception_v3": 299,  # what its auxiliary classifier accepts in training
    "maxvit_t": 224,  # its windows of 7 must divide each of its stages
    "vit_h_14": 56,  # its patches of 14 must divide it
}
# Of 630 million parameters, the predicted weights, the changes and their gradients would not fit
# into the memory of a laptop; the first and the last layer stand for all.
PREDICTED = {"vit_h_14": ["conv_proj.*", "heads.*"], "regnet_y_128gf": ["stem.*", "fc.*"]}
QUICK = {"mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"} | set(OTHERS)
HUGE, MOST_FOR_DRAWS = 1e8, 2e8


def case_of(name: str) -> Case:
    if name in OTHERS:
        return OTHERS[name]
    side = SIDES.get(name, 64)
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # they warn where it is not said
    build = partial(models.get_model, name, weights=None, num_classes=10, **options)
    return Case(build, [(2, 3, side, side)], PREDICTED.get(name))


@torch.no_grad()
def make_lively(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Let each weight have a say in the output, which differs between samples."""
    for parameter in network.parameters():
        if not parameter.any():  # the last layer of a vision transformer, say
            parameter.normal_(std=0.1)
    norms = [module for module in network.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:  # with statistics of no data, deep networks return the last bias
        norm.train().momentum = 1.0
    network(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def hypernetized(network: nn.Module, predicted: Sequence[str] | None) -> HyperModel:
    huge = sum(parameter.numel() for parameter in network.parameters()) > HUGE
    head = {"head": partial(LowRankHead, rank=1)} if huge else {}
    # Tanh, for a LeakyReLU of two units may have both at a hundredth.
    config = HypernetworkConfig(hidden_sizes=[2], activation="Tanh", head_init="zero", **head)
    return HyperModel(network, Uniform(0, 1), "mip", config, ThetaConfig(predicted)).eval()


def assert_same(output: Any, expected: Any, tolerance: float = 1e-6) -> None:
    assert type(output) is type(expected)
    for part, other in zip(tensors_in(output), tensors_in(expected), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(part, other, atol=tolerance * scale, rtol=0)


def differ(output: Any, other: Any) -> bool:
    pairs = zip(tensors_in(output), tensors_in(other), strict=True)
    return all(a.isfinite().all() and not torch.allclose(a, b) for a, b in pairs)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on shared cores take ten times as long in small layers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    marks = [] if name in QUICK else [pytest.mark.slow]
    if "monai_voxelmorph_" in name:  # it tells that MONAI was installed without its own kernels
        marks.append(pytest.mark.filterwarnings("ignore:.*native grid_sample"))
    return marks


@pytest.fixture(
    params=[pytest.param(name, marks=marks_of(name)) for name in (*CLASSIFIERS, *OTHERS)]
)
def zoo(request, one_thread) -> Zoo:
    """A hypermodel of a network, and what the network itself computed before."""
    case = case_of(request.param)
    network = case.build()
    inputs = tuple(torch.randn(shape) for shape in case.shapes)
    make_lively(network, inputs)
    with torch.no_grad():
        expected = network(*inputs)
    first, second = ([part[sample] for part in tensors_in(expected)] for sample in range(2))
    assert differ(first, second)  # else equal outputs would tell little
    return Zoo(case.build, inputs, expected, hypernetized(network, case.predicted))


@torch.no_grad()
def test_a_network_computes_the_same_while_predicted_changes_are_zero(zoo):
    model = zoo.model
    for gamma in (0.0, 0.8):
        assert_same(model(zoo.inputs, gamma), zoo.expected)
    at, theta = model.at(0.3), model.at(0.3).theta
    assert at.theta.keys() == theta.keys()  # predicted before what follows
    for parameter in model.theta0.values():
        parameter.fill_(math.nan)  # what the network holds must not be what it uses
    args, kwargs = as_arguments(zoo.inputs)
    assert_same(at(*args, **kwargs), zoo.expected)


# It tells that PyTorch runs some kernels of attention and pooling draw by draw.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@torch.no_grad()
def test_draws_in_one_call_compute_the_same_while_predicted_changes_are_zero(zoo):
    if zoo.model.layout.num_predicted > MOST_FOR_DRAWS:
        pytest.skip("two sets of these weights would not fit into the memory of a laptop")
    # Hundreds of layers turn other kernels' rounding into 4e-3 in float32, so in float64.
    network = zoo.model.original_primary().double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in zoo.inputs)
    expected = network(*inputs)
    output = zoo.model.double()(inputs, torch.tensor([[0.0], [0.8]]))
    if isinstance(zoo.model.primary, nn.RNNBase):  # the first dimension of its state is layers
        output, expected = output[0], expected[0]
    assert_same(output, expected, tolerance=1e-6)


@torch.no_grad()
def test_a_materialized_network_is_of_the_same_class_and_its_weights_load_into_a_new_one(zoo):
    materialized = zoo.model.materialize(0.3)
    assert_same(materialized(*zoo.inputs), zoo.expected)
    del materialized
    weight = zoo.model.hypernetwork.head.weight
    weight.add_(torch.randn_like(weight), alpha=1e-3)
    output = zoo.model(zoo.inputs, 0.3)
    assert differ(output, zoo.expected)
    materialized, new = zoo.model.materialize(0.3), zoo.build().eval()
    assert type(materialized) is type(new)
    new.load_state_dict(materialized.state_dict())
    assert_same(new(*zoo.inputs), output)


def test_a_training_step_makes_the_output_depend_on_gamma(zoo):
    model = zoo.model.train()
    output = model(zoo.inputs, 0.7)
    sum((part - 1).square().mean() for part in tensors_in(output)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.eval().zero_grad()
    with torch.no_grad():
        assert differ(model(zoo.inputs, 0.0), model(zoo.inputs, 1.0))
