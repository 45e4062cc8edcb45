import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mip_lightning import (
    All,
    ByName,
    ByRegularExpression,
    ByType,
    HyperModel,
    HypernetworkConfig,
    ThetaConfig,
    Uniform,
    UsageError,
)

SMALL = HypernetworkConfig(hidden_sizes=[2])


def predicted(primary: nn.Module, selection) -> set[str]:
    theta = ThetaConfig(predicted=selection)
    return set(HyperModel(primary, Uniform(), hypernetwork=SMALL, theta=theta).layout.shapes)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(dim=(2, 3)))


CONVOLUTIONS = {"encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias"}
AFFINE = {"encoder.1.weight", "encoder.1.bias"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, CONVOLUTIONS | HEAD),
        (All(), CONVOLUTIONS | HEAD),
        (["encoder.*"], CONVOLUTIONS),
        (["encoder.1.weight", "head.*"], {"encoder.1.weight"} | HEAD),
        (ByName(["*.bias"]), {"encoder.0.bias", "encoder.2.bias", "head.bias"}),
        (
            ByRegularExpression([r"encoder\.\d\.weight", "^head"]),
            {"encoder.0.weight", "encoder.2.weight"} | HEAD,
        ),
        (ByType(["Conv2d"]), CONVOLUTIONS),
        (ByType([nn.Linear]), HEAD),
        (ByType(["BatchNorm2d"]), AFFINE),
        (ByType(["Sequential"]), CONVOLUTIONS),
        (ByType(["Small"]), CONVOLUTIONS | HEAD),
    ],
)
def test_a_selection_chooses_what_it_names_and_normalization_only_if_named_exactly(
    selection, expected
):
    assert predicted(Small(), selection) == expected


def test_what_is_not_selected_trains_as_usual():
    model = HyperModel(Small(), Uniform(), theta=ThetaConfig(predicted=["head.*"]))
    model(torch.rand(4, 1, 8, 8), 0.5).sum().backward()
    assert model.primary.encoder[0].weight.grad.abs().sum() > 0
    assert model.hypernetwork.head.weight.shape[0] == 2 * 3 + 3


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (["encoder.*", "decoder.*"], r"'decoder.\*' matches nothing.*encoder"),
        (["hed.weight"], r"'hed.weight' matches nothing.*head.weight"),
        (ByRegularExpression(["^Head"]), "matches nothing.*head"),
        (ByType(["Conv3d"]), "'Conv3d' matches nothing.*Conv2d"),
        (ByType([nn.ReLU]), "'ReLU' matches nothing"),
        (ByRegularExpression([r"encoder\.1"]), "only parameters of normalization layers"),
        ([], "selects nothing"),
    ],
)
def test_a_selection_or_pattern_that_matches_nothing_is_refused_with_near_names(selection, says):
    with pytest.raises(UsageError, match=says):
        predicted(Small(), selection)


def test_a_wrong_regular_expression_is_refused():
    with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
        ByRegularExpression(["("])


class Tied(nn.Module):
    """Two layers that share a weight, and one that goes by two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.second

    def forward(self, x):
        return self.again(self.second(self.first(x)))


@pytest.mark.parametrize("selection", [None, ["second.weight", "again.bias"]])
def test_tied_parameters_are_predicted_once_and_stay_tied(selection):
    torch.manual_seed(0)
    primary = Tied()
    model = HyperModel(primary, Uniform(), theta=ThetaConfig(predicted=selection))
    theta = model.at(torch.tensor([0.3])).theta
    assert sum(name.endswith("weight") for name in theta) == 1
    x = torch.rand(2, 4)
    weight = theta["first.weight"]
    first_bias = theta.get("first.bias", primary.first.bias)
    expected = x @ weight.T + first_bias
    for _ in range(2):
        expected = expected @ weight.T + theta["second.bias"]
    torch.testing.assert_close(model(x, 0.3), expected)
    network = model.materialize(0.3)
    assert network.second.weight is network.first.weight
    torch.testing.assert_close(network(x), expected)


def test_statistics_live_in_the_primary_and_in_its_state_dict():
    model = HyperModel(Small(), Uniform(), hypernetwork=SMALL)
    model(torch.rand(4, 1, 8, 8), 0.5)
    name = "primary.encoder.1.running_mean"
    assert model.state_dict()[name] is not None
    assert model.state_dict()[name].abs().sum() > 0
    assert model.primary.state_dict()["encoder.1.num_batches_tracked"] == 1


def test_a_lazy_layer_is_refused_until_it_has_a_shape():
    with pytest.raises(UsageError, match=r"run the network once"):
        predicted(nn.Sequential(nn.LazyLinear(3)), None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")  # it is what is refused
def test_a_torchscript_primary_is_refused():
    with pytest.raises(UsageError, match="TorchScript"):
        predicted(torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), None)


def test_the_summary_counts_before_any_memory_is_taken():
    with torch.device("meta"):
        model = HyperModel(resnet18(), Uniform(), hypernetwork=HypernetworkConfig([16, 128]))
        summary = model.summary()
    sizes = {name: parameter.numel() for name, parameter in resnet18().named_parameters()}
    affine = sum(size for name, size in sizes.items() if "bn" in name or "downsample.1" in name)
    total = sum(sizes.values())
    assert model.hypernetwork.head.weight.is_meta
    assert summary.num_predicted == total - affine
    assert summary.num_ordinary == affine
    assert summary.num_head == 128 * summary.num_predicted
    assert summary.num_trunk == 2 * 16 + 16 + 16 * 128 + 128
    assert summary.memory() == {
        "weights": 4 * (summary.num_head + summary.num_trunk),
        "gradient": 4 * (summary.num_head + summary.num_trunk),
        "Adam's moments": 8 * (summary.num_head + summary.num_trunk),
    }
    text = str(summary)
    assert "fc.weight" in text
    assert f"{total - affine:,}" in text
    assert "smaller ones" in text


class WithFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 3).requires_grad_(False)
        self.order = nn.Parameter(torch.arange(3), requires_grad=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.backbone(x)[..., self.order])


@pytest.mark.parametrize("selection", [None, ["*"], ByRegularExpression(["."]), ByType(["Linear"])])
def test_frozen_parameters_and_integers_are_not_predicted(selection):
    assert predicted(WithFrozen(), selection) == HEAD
    model = HyperModel(WithFrozen(), Uniform(), theta=ThetaConfig(predicted=selection))
    roles = {tensor.name: tensor.role for tensor in model.summary().tensors}
    assert roles["backbone.weight"] == roles["order"] == "frozen"


def test_a_frozen_parameter_that_is_named_exactly_is_predicted():
    assert predicted(WithFrozen(), ["backbone.weight"]) == {"backbone.weight"}
    with pytest.raises(UsageError, match=r"selects order, which holds torch\.int64"):
        predicted(WithFrozen(), ["order"])
    with pytest.raises(UsageError, match="and frozen ones"):
        predicted(WithFrozen().head.requires_grad_(False), None)


@pytest.mark.parametrize("formulation", ["default", "mip"])
@pytest.mark.parametrize("row", [0, 2, -1])
def test_the_row_of_padding_of_an_embedding_stays_zero(formulation, row):
    embedding = nn.Embedding(4, 3, padding_idx=row)
    model = HyperModel(embedding, Uniform(), formulation, hypernetwork=SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for gamma in (torch.tensor([0.3]), torch.tensor([[0.3], [0.9]])):
            weight = model.at(gamma).theta["weight"]
            assert not weight[..., row, :].any()
            assert weight[..., (row + 1) % 4, :].all()
        optimizer.zero_grad()
        model(torch.arange(4), 0.5).square().sum().backward()
        optimizer.step()
    assert not model.materialize(0.3).weight[row].any()
