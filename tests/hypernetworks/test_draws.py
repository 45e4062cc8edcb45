"""Where the samples lie that K draws share: said, inferred, or refused.

The truth is ``torch.func.functional_call`` with the same theta, once a draw, on samples that the
test itself takes.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from mip_lightning import HyperModel, HypernetworkConfig, Uniform, UsageError
from mip_lightning.hypernetworks import DrawsConfig

pytestmark = [
    # PyTorch tells that it runs attention draw by draw, and that it is slower with samples second.
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]
GAMMA = torch.tensor([[0.1], [0.9]])
T, B, E = 5, 6, 4


def make(primary: nn.Module, batch_dims: Any = 0, run: Any = "auto") -> HyperModel:
    small = HypernetworkConfig(hidden_sizes=[4, 8])
    draws = DrawsConfig(batch_dims, run)
    return HyperModel(primary, Uniform(), hypernetwork=small, draws=draws)


def of_draws(model: HyperModel, *calls: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Any]:
    """What the primary returns with the weights of each draw, given its own arguments."""
    primary = copy.deepcopy(model.primary)
    return [
        functional_call(primary, model.at(own).theta, args, kwargs)
        for own, (args, kwargs) in zip(GAMMA, calls, strict=True)
    ]


def layers(batch_first: bool) -> dict[str, nn.Module]:
    options = {"dropout": 0.0, "batch_first": batch_first}
    encoder = nn.TransformerEncoderLayer(E, 2, 8, **options)
    decoder = nn.TransformerDecoderLayer(E, 2, 8, **options)
    return {
        "encoder layer": encoder,
        "encoder": nn.TransformerEncoder(encoder, 2),
        "decoder": nn.TransformerDecoder(decoder, 1),
        "transformer": nn.Transformer(E, 2, 1, 1, 8, **options),
        "attention": nn.MultiheadAttention(E, 2, **options),
        "lstm": nn.LSTM(E, 3, num_layers=3, batch_first=batch_first),
        "gru": nn.GRU(E, 3, num_layers=3, batch_first=batch_first),
    }


INPUTS = {"decoder": 2, "transformer": 2, "attention": 3}
MASKS = {"encoder layer": "src_mask", "encoder": "mask", "decoder": "tgt_mask"}
MASKS |= {"transformer": "src_mask", "attention": "attn_mask"}


@pytest.mark.parametrize("time", [T, B], ids=["shorter", "as long as the batch"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", layers(True))
def test_layers_of_torch_take_their_samples_and_masks_as_they_are_built(name, batch_first, time):
    """Hyperlight issue 4: (T, B, E) was split along time. h_n has its samples second anyway."""
    model = make(layers(batch_first)[name])
    dim = 0 if batch_first else 1
    x = torch.rand(B, time, E) if batch_first else torch.rand(time, B, E)
    mask = torch.ones(time, time).triu(1).bool()
    kwargs = {MASKS[name]: mask} if name in MASKS else {}
    count = INPUTS.get(name, 1)
    calls = [((part,) * count, kwargs) for part in x.chunk(2, dim)]
    found, each = model.at(GAMMA)(*(x,) * count, **kwargs), of_draws(model, *calls)
    if name == "lstm":
        found, each = (found[0], *found[1]), [(y, *states) for y, states in each]
    found, each = (found, each) if isinstance(found, tuple) else ((found,), [(e,) for e in each])
    dims = {"attention": (dim, 0), "lstm": (dim, 1, 1), "gru": (dim, 1)}.get(name, (dim,))
    for own, parts, of in zip(found, zip(*each, strict=True), dims, strict=True):
        torch.testing.assert_close(own, torch.cat(parts, of))


class Masked(nn.Module):
    """A user's transformer of layers with samples second."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(E, 2, 8, dropout=0.0)

    def forward(self, tokens, mask=None, *, scale=1.0):
        y = self.layer(tokens, src_mask=mask) * scale
        return {"tokens": y, "first": y[0], "mean": y.mean((0, 1))}


SAID = {"tokens": 1, "mask": None, "output": 1, "output['first']": 0, "output['mean']": None}


@pytest.mark.parametrize("run", ["vmap", "in_turn", "auto"])
@pytest.mark.parametrize("time", [T, B])
def test_samples_along_another_dimension_are_split_and_joined_there(time, run):
    model = make(Masked(), SAID, run)
    x, mask = torch.rand(time, B, E), torch.ones(time, time).triu(1).bool()
    found = model.at(GAMMA)(x, mask, scale=2.0)
    calls = [((part, mask), {"scale": 2.0}) for part in x.chunk(2, 1)]
    each = of_draws(model, *calls)
    torch.testing.assert_close(found["tokens"], torch.cat([e["tokens"] for e in each], 1))
    torch.testing.assert_close(found["first"], torch.cat([e["first"] for e in each]))
    torch.testing.assert_close(found["mean"], torch.stack([e["mean"] for e in each]))


def test_one_number_says_it_for_all():
    model, x = make(nn.Linear(E, 2), 1), torch.rand(T, B, E)
    each = of_draws(model, *(((part,), {}) for part in x.chunk(2, 1)))
    torch.testing.assert_close(model.at(GAMMA)(x), torch.cat(each, 1))


class Pairwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.points = nn.Linear(E, 3), nn.Linear(2, 3)

    def forward(self, x, points, *, nested=None):
        y = self.branch(x) @ self.points(points).T
        return y if nested is None else y + nested["shift"]


@pytest.mark.parametrize("count", [T, B, 2 * B])
def test_query_points_that_all_samples_share_can_be_said(count):
    """DeepONet (pytorch issue 151561): they are refused or right, never split."""
    model = make(Pairwise(), {"points": None, "nested['shift']": None})
    x, points, shift = torch.rand(B, E), torch.rand(count, 2), torch.rand(count)
    found = model.at(GAMMA)(x, points, nested={"shift": shift})
    calls = [((part, points), {"nested": {"shift": shift}}) for part in x.chunk(2)]
    torch.testing.assert_close(found, torch.cat(of_draws(model, *calls)))
    if count == 2 * B:
        says = r"points has shape \(12, 2\), and x of shape \(6, 4\) holds 6 samples for 2 draws"
        with pytest.raises(UsageError, match=says + r".*batch_dims={'points': 0}.*'points': None"):
            make(Pairwise()).at(GAMMA)(x, points)


def test_a_square_tensor_that_may_be_of_positions_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(E, E)

        def forward(self, x, mask):
            return self.linear(mask @ x)

    x = torch.rand(B, B, E)
    with pytest.raises(UsageError, match=r"mask has shape \(6, 6\).*samples or positions"):
        make(Own()).at(GAMMA)(x, torch.rand(B, B))
    model, mask = make(Own(), {"mask": None}), torch.rand(B, B)
    each = of_draws(model, *(((part, mask), {}) for part in x.chunk(2)))
    torch.testing.assert_close(model.at(GAMMA)(x, mask), torch.cat(each))


@pytest.mark.parametrize("value", [torch.tensor(2.0), torch.rand(1), torch.rand(1, E)])
def test_what_is_made_to_be_broadcast_is_shared(value):
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x * scale)

    model, x = make(Scaled(E, 2)), torch.rand(B, E)
    each = of_draws(model, *(((part, value), {}) for part in x.chunk(2)))
    torch.testing.assert_close(model.at(GAMMA)(x, value), torch.cat(each))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(E, 2)

    def forward(self, x):
        y = self.linear(x)
        return y, [{"pooled": y.mean(0)}]


@pytest.mark.parametrize("run", ["vmap", "in_turn"])
def test_an_output_that_does_not_hold_the_samples_is_refused_by_name(run):
    x = torch.rand(3 * 2, E)
    with pytest.raises(UsageError, match=r"output\[1\]\[0\]\['pooled'\] has shape \(2,\) .*of 3 s"):
        make(Pooled(), run=run).at(GAMMA)(x)
    model = make(Pooled(), {"output[1]": None}, run)
    y, (more,) = model.at(GAMMA)(x)
    each = of_draws(model, *(((part,), {}) for part in x.chunk(2)))
    torch.testing.assert_close(y, torch.cat([own for own, _ in each]))
    torch.testing.assert_close(more["pooled"], torch.stack([rest[0]["pooled"] for _, rest in each]))


def test_packed_sequences_are_split_by_samples_and_joined():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(E, 3)

        def forward(self, packed):
            return self.lstm(packed)[0]

    model = make(Packed())
    texts = [torch.rand(length, E) for length in (2, 5, 1, 3, 4, 2)]
    found = unpack_sequence(model.at(GAMMA)(pack_sequence(texts, enforce_sorted=False)))
    parts = [pack_sequence(texts[start : start + 3], enforce_sorted=False) for start in (0, 3)]
    each = of_draws(model, *(((part,), {}) for part in parts))
    expected = [text for part in each for text in unpack_sequence(part)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    found[0].sum().backward()
    assert model.hypernetwork.head.weight.grad is not None
    with pytest.raises(UsageError, match=r"2 draws, which do not divide packed of shape \(5,\)"):
        model.at(GAMMA)(pack_sequence(texts[:5], enforce_sorted=False))


@pytest.mark.parametrize(
    ("batch_dims", "says"),
    [
        ({"mask": None}, r"batch_dims names 'mask', .* name one of input, output"),
        ({"input.x": 1, "outputs": 1}, "names 'outputs'"),
        ({"input": 2}, r"input has shape \(6, 4\), and .* dimension 2"),
        ({"output": 2}, r"output has shape \(3, 2\) .* not along dimension 2"),
    ],
)
def test_what_cannot_be_so_is_refused(batch_dims, says):
    with pytest.raises(UsageError, match=says):
        make(nn.Linear(E, 2), batch_dims).at(GAMMA)(torch.rand(B, E))


def test_vmap_alone_raises_what_it_cannot_do():
    class Looking(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    x = torch.rand(B, E)
    with pytest.raises(RuntimeError, match="data-dependent"):
        make(Looking(E, 2), run="vmap").at(GAMMA)(x)
    model = make(Looking(E, 2))
    each = of_draws(model, *(((part,), {}) for part in x.chunk(2)))
    torch.testing.assert_close(model.at(GAMMA)(x), torch.cat(each))


def test_a_line_says_once_that_draws_run_in_turn(caplog):
    class Filling(nn.Linear):
        """Theseus issue 650: it writes into a tensor that it made."""

        def forward(self, x):
            out = torch.zeros(len(x), 3, 2)
            for step in range(3):
                out[:, step] = super().forward(x)
            return out

    model, x = make(Filling(E, 2)), torch.rand(B, E)
    with caplog.at_level("INFO"):
        for _ in range(2):
            found: Tensor = model.at(GAMMA)(x)
    each = of_draws(model, *(((part,), {}) for part in x.chunk(2)))
    torch.testing.assert_close(found, torch.cat(each))
    (line,) = [message for message in caplog.messages if "run in turn" in message]
    assert line.startswith("K draws of Filling run in turn, for vmap cannot run it (vmap: in")


@pytest.mark.slow
def test_tensordicts_are_split_by_samples_and_joined():
    """Tensordict issue 823: they went whole to every draw."""
    library = pytest.importorskip("tensordict")

    class Adding(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(E, 2)

        def forward(self, given):
            return given.clone().set("y", self.linear(given["x"]))

    model = make(Adding())
    given = library.TensorDict({"x": torch.rand(B, E)}, batch_size=[B])
    found = model.at(GAMMA)(given)
    each = of_draws(model, *(((part,), {}) for part in (given[:3], given[3:])))
    torch.testing.assert_close(found["y"], torch.cat([part["y"] for part in each]))
    assert found.batch_size == given.batch_size
