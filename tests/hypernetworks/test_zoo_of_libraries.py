"""Networks of Hugging Face, torch_geometric and others are primaries as they are.

All are built from configurations, without downloads. The truth is the network itself, called by
``torch.func.functional_call`` with the weights of each draw on its own samples.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mip_lightning import HyperModel, HypernetworkConfig, Uniform
from mip_lightning.hypernetworks import DrawsConfig, PerDraw
from mip_lightning.utilities import tensors_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of these libraries' own code
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # PyTorch tells that it runs attention draw by draw.
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
GAMMA = torch.tensor([[0.2], [0.8]])
B = 4


class Case(NamedTuple):
    """A network, the arguments of its draws' samples, and what it takes to call it."""

    network: nn.Module
    inputs: Callable[[slice], dict[str, Any]]
    draws: DrawsConfig = DrawsConfig()


def tokens() -> dict[str, Tensor]:
    mask = torch.ones(B, 6, dtype=torch.long)
    mask[:, 4:] = 0
    return {"input_ids": torch.randint(0, 30, (B, 6)), "attention_mask": mask}


def of(given: dict[str, Any]) -> Callable[[slice], dict[str, Any]]:
    """Some samples of arguments; what is no tensor, or of another length, all share."""
    return lambda which: {
        name: value[which] if isinstance(value, Tensor) and len(value) == B else value
        for name, value in given.items()
    }


def bert() -> Case:
    library = pytest.importorskip("transformers")
    config = library.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Case(library.BertModel(config), of(tokens()))


def gpt2() -> Case:
    library = pytest.importorskip("transformers")
    config = library.GPT2Config(
        vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    given = tokens()
    network = library.GPT2LMHeadModel(config)
    return Case(network, of({**given, "labels": given["input_ids"]}))


def vision_transformer() -> Case:
    library = pytest.importorskip("transformers")
    config = library.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_channels=1, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    given = {"pixel_values": torch.randn(B, 1, 16, 16), "labels": torch.tensor([0, 1, 0, 1])}
    return Case(library.ViTForImageClassification(config), of(given))


def diffusion_unet() -> Case:
    library = pytest.importorskip("diffusers")
    network = library.UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    given = {"sample": torch.randn(B, 1, 16, 16), "timestep": torch.randint(0, 9, (B,))}
    return Case(network, of(given))


def diffusion_unet_of_one_time() -> Case:
    case = diffusion_unet()
    return case._replace(inputs=of({"sample": torch.randn(B, 1, 16, 16), "timestep": 7}))


def fourier_operator() -> Case:
    library = pytest.importorskip("neuralop.models")
    network = library.FNO(
        n_modes=(4, 4), hidden_channels=4, in_channels=1, out_channels=1, n_layers=2
    )
    return Case(network, of({"x": torch.randn(B, 1, 16, 16)}))


def graph_network() -> Case:
    geometric = pytest.importorskip("torch_geometric")
    layers = pytest.importorskip("torch_geometric.nn")

    class Graphs(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.GCNConv(3, 8), layers.GCNConv(8, 2)

        def forward(self, graphs):
            hidden = self.first(graphs.x, graphs.edge_index).relu()
            return layers.global_mean_pool(self.second(hidden, graphs.edge_index), graphs.batch)

    each = [
        geometric.data.Data(x=torch.randn(n, 3), edge_index=torch.randint(0, n, (2, 2 * n)))
        for n in (3, 5, 4, 2)
    ]
    join = geometric.data.Batch.from_data_list
    return Case(Graphs(), lambda which: {"graphs": join(each[which])})


def fixed_graph() -> Case:
    """One graph for all samples (pytorch_geometric issue 6921): its edges are shared."""
    layers = pytest.importorskip("torch_geometric.nn")

    class OnGraph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layers.GCNConv(3, 2, node_dim=1)

        def forward(self, x, edge_index):
            return self.layer(x, edge_index)

    edges = torch.randint(0, 5, (2, 8))
    x = torch.randn(B, 5, 3)
    return Case(
        OnGraph(),
        lambda which: {"x": x[which], "edge_index": edges},
        DrawsConfig({"edge_index": None}),
    )


def deep_operator() -> Case:
    """A DeepONet: functions by their values at sensors, and points that all of them share."""

    class DeepOperator(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
            self.trunk = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, functions, points):
            return self.branch(functions) @ self.trunk(points).T + self.bias

    functions, points = torch.randn(B, 6), torch.rand(B, 2)
    return Case(
        DeepOperator(),
        lambda which: {"functions": functions[which], "points": points},
        DrawsConfig({"points": None}),
    )


def sine_network() -> Case:
    """A SIREN, whose weights start by a rule of their own."""

    class Sine(nn.Linear):
        def forward(self, x):
            return (30 * super().forward(x)).sin()

    network = nn.Sequential(Sine(2, 16), Sine(16, 16), nn.Linear(16, 1))
    for layer in network:
        nn.init.uniform_(layer.weight, -1 / layer.in_features, 1 / layer.in_features)
    return Case(network, of({"input": torch.rand(B, 2)}))


CASES = (
    bert,
    gpt2,
    vision_transformer,
    diffusion_unet,
    diffusion_unet_of_one_time,
    fourier_operator,
    graph_network,
    fixed_graph,
    deep_operator,
    sine_network,
)


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, without what is kept for each draw."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if hasattr(output, "values") else output
    return [t for part in parts if not isinstance(part, PerDraw) for t in tensors_in([part])]


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_a_network_of_a_library_is_a_primary_as_it_is(build):
    torch.manual_seed(0)
    case = build()
    network = copy.deepcopy(case.network)
    small = HypernetworkConfig(hidden_sizes=[4, 8])
    model = HyperModel(case.network, Uniform(), hypernetwork=small, draws=case.draws)
    everything = case.inputs(slice(None))

    one = model.at(0.3)
    whole = functional_call(network, one.theta, (), everything)
    for found, expected in zip(flat(one(**everything)), flat(whole), strict=True):
        torch.testing.assert_close(found, expected)
    ordinary = model.materialize(0.3)
    for found, expected in zip(flat(ordinary(**everything)), flat(whole), strict=True):
        torch.testing.assert_close(found, expected)

    output = model.at(GAMMA)(**everything)
    each = [
        flat(functional_call(network, model.at(own).theta, (), case.inputs(part)))
        for own, part in zip(GAMMA, (slice(0, 2), slice(2, 4)), strict=True)
    ]
    assert type(output) is type(whole)
    for found, *parts in zip(flat(output), *each, strict=True):
        joined = torch.cat(parts) if parts[0].ndim else torch.stack(parts)
        torch.testing.assert_close(found, joined, rtol=1e-4, atol=1e-5)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = model.hypernetwork.head.weight.clone()
    flat(output)[0].float().square().mean().backward()
    optimizer.step()
    assert (model.hypernetwork.head.weight != before).any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
