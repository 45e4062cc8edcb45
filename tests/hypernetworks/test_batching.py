"""K draws in a batch give what a call for each draw gives, whatever a primary takes and returns.

The truth is ``torch.func.functional_call`` with the same theta, on each draw's own samples.
"""

import copy
import pickle
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from mip_lightning import HyperModel, HypernetworkConfig, ThetaConfig, Uniform, UsageError
from mip_lightning.hypernetworks import DrawsConfig, PerDraw

pytestmark = [
    # PyTorch tells that it runs attention draw by draw, and that it is slower with samples second.
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]
SMALL = HypernetworkConfig(hidden_sizes=[4, 8])
GAMMA = torch.tensor([[0.1], [0.5], [0.9]])


def make(primary: nn.Module, in_turn: bool = False, batch_dims: Any = 0) -> HyperModel:
    if in_turn:  # a layer in training that has buffers
        primary.statistics = nn.BatchNorm1d(1)
    draws = DrawsConfig(batch_dims)
    return HyperModel(primary, Uniform(), hypernetwork=SMALL, draws=draws)


def of_each_draw(
    model: HyperModel, args_of: Callable[[int], tuple[Any, ...]], gamma: Tensor
) -> list[Any]:
    """What the primary itself returns with the weights of each draw, on its samples."""
    primary = copy.deepcopy(model.primary)
    return [
        functional_call(primary, model.at(own).theta, args_of(draw))
        for draw, own in enumerate(gamma)
    ]


def chunks(gamma: Tensor, *tensors: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda draw: tuple(tensor.chunk(len(gamma))[draw] for tensor in tensors)


# --- what a primary returns ---


class Pair(NamedTuple):
    logits: Tensor
    word: str


class Longer(Pair):
    """A named tuple that torch's pytree does not know."""


@dataclass
class Record:
    logits: Tensor
    word: str
    nothing: Tensor | None = None
    double: Tensor = field(init=False)

    def __post_init__(self):
        self.double = 2 * self.logits
        self.triple = 3 * self.logits  # not a field


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    number: float


@dataclass(slots=True, eq=False)
class Slots:
    logits: Tensor


class ModelOutput(OrderedDict):
    """As the outputs of Hugging Face: a mapping of what is not ``None``, by attributes too."""

    def __init_subclass__(cls):
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
        )

    def __post_init__(self):
        for own in fields(self):
            if getattr(self, own.name) is not None:
                super().__setitem__(own.name, getattr(self, own.name))

    def update(self, *args):
        raise TypeError("not to be changed")

    __setitem__ = __delitem__ = update


@dataclass
class Classified(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Tagged(dict):
    """A mapping that is made of something else."""

    def __init__(self, tag: str, **values):
        super().__init__(**values)
        self.tag = tag


def counted(logits: Tensor) -> defaultdict:
    return defaultdict(list, logits=logits)


def tagged(logits: Tensor) -> Tagged:
    return Tagged("tag", logits=logits)


RETURNED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], list[Any]]]] = {
    "tensor": (lambda y: y, lambda o: [o]),
    "tuple": (lambda y: (y, None, 3), lambda o: list(o)),
    "list": (lambda y: [y, "word", [y]], lambda o: [*o[:2], *o[2]]),
    "dict": (lambda y: {"y": y, 3: {"deep": (y,)}}, lambda o: [o["y"], *o[3]["deep"]]),
    "ordered": (lambda y: OrderedDict(y=y, n=1), lambda o: [o["y"], o["n"]]),
    "defaultdict": (counted, lambda o: [o["logits"], o["absent"]]),
    "mapping": (lambda y: types.MappingProxyType({"y": y}), lambda o: [o["y"]]),
    "dict's subclass": (tagged, lambda o: [o["logits"], o.tag]),
    "deque": (lambda y: deque([y, y]), lambda o: list(o)),
    "named tuple": (lambda y: Pair(y, "word"), lambda o: [o.logits, o.word]),
    "its subclass": (lambda y: Longer(y, "word"), lambda o: [o.logits, o.word]),
    "torch's own": (lambda y: y.max(dim=1), lambda o: [o.values, o.indices]),
    "dataclass": (
        lambda y: Record(y, "word"),
        lambda o: [o.logits, o.word, o.nothing, o.double, o.triple],
    ),
    "frozen": (lambda y: Frozen(y, 0.5), lambda o: [o.logits, o.number]),
    "slots": (lambda y: Slots(y), lambda o: [o.logits]),
    "model output": (
        lambda y: Classified(y.mean(), y, (y, 2 * y)),
        lambda o: [o.loss, o.logits, *o.hidden_states, o.attentions, o["logits"], list(o)],
    ),
    "nested": (
        lambda y: {"a": [Record(y, "word"), Pair(y, "other")], "b": (Classified(logits=y),)},
        lambda o: [o["a"][0].double, o["a"][1].logits, o["b"][0].logits, o["b"][0].loss],
    ),
    "shared object": (lambda y: (y, RETURNED), lambda o: [o[0], o[1] is RETURNED]),
    "nothing": (lambda y: None, lambda o: [o]),
}


class Returning(nn.Module):
    def __init__(self, make_output):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.make_output = make_output

    def forward(self, x):
        return self.make_output(self.linear(x))


@pytest.mark.parametrize("in_turn", [False, True], ids=["vmap", "in turn"])
@pytest.mark.parametrize("returned", RETURNED)
def test_outputs_of_draws_are_joined_whatever_holds_them(returned, in_turn):
    make_output, read = RETURNED[returned]
    model, x = make(Returning(make_output), in_turn), torch.rand(6, 4)
    output = model(x, GAMMA)
    apart = of_each_draw(model, chunks(GAMMA, x), GAMMA)
    assert type(output) is type(apart[0])
    for found, *expected in zip(read(output), *map(read, apart), strict=True):
        if isinstance(found, Tensor):
            whole = torch.cat(expected) if expected[0].ndim else torch.stack(expected)
            torch.testing.assert_close(found, whole)
        else:
            assert found == expected[0]


@pytest.mark.parametrize("in_turn", [False, True], ids=["vmap", "in turn"])
def test_gradients_pass_through_joined_outputs(in_turn):
    model, x = (
        make(Returning(lambda y: Classified(y.square().mean(), y)), in_turn),
        torch.rand(6, 4),
    )
    model(x, GAMMA).loss.sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    sum(o.loss for o in of_each_draw(model, chunks(GAMMA, x), GAMMA)).backward()
    # The copy of the primary has theta0's part, which is not predicted here.
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


class Opaque:
    def __init__(self, tensor):
        self.tensor = tensor


class Differing(nn.Module):
    """Returns something else for each draw, whose number is its input's first feature."""

    def __init__(self, make_output):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.make_output = make_output

    def forward(self, x):
        return self.make_output(self.linear(x), int(x[0, 0]))


@pytest.mark.parametrize(
    ("make_output", "says"),
    [
        (lambda y, draw: {"loss": draw / 2}, r"output\['loss'\] is 0.0 for one draw and 0.5 for"),
        (lambda y, draw: Frozen(y, 1.0 * draw), r"output\.number is 0.0 for one draw and 1.0 for"),
        (
            lambda y, draw: (y, [f"no {draw}"]),
            r"output\[1\]\[0\] is 'no 0' for one draw and 'no 1'",
        ),
        (lambda y, draw: (y, bool(draw)), r"output\[1\] is False for one draw and True for"),
        (
            lambda y, draw: (y, y if draw else None),
            r"output\[1\] is None for one draw and a Tensor",
        ),
        (lambda y, draw: (y,) * (draw + 1), r"is a tuple with \[0\] for one .* with \[0\], \[1\]"),
        (
            lambda y, draw: {draw: y},
            r"output is a dict with \[0\] for one draw and a dict with \[1\]",
        ),
        (lambda y, draw: [(y,), [y]][draw > 0], "output is a tuple with .* and a list with"),
        (lambda y, draw: y[:, :draw], r"output has shape \(2, 0\) for one draw and \(2, 1\) for"),
        (
            lambda y, draw: y if draw else y.sum(),
            r"output has shape \(\) for one draw and \(2, 2\)",
        ),
        (lambda y, draw: y.detach().numpy(), "output is a ndarray for one draw"),
        (lambda y, draw: torch.distributions.Normal(y, 1.0), "output is a Normal for one draw"),
    ],
)
def test_outputs_that_cannot_be_joined_are_refused_by_name(make_output, says):
    x = torch.arange(3.0).repeat_interleave(2)[:, None].expand(6, 4)
    with pytest.raises(UsageError, match=says) as refused:
        make(Differing(make_output), in_turn=True)(x, GAMMA)
    assert "\n" not in str(refused.value)


def test_an_object_within_an_output_is_kept_for_each_draw():
    """As the cache that GPT-2 of Hugging Face returns beside its logits."""
    model, x = make(Returning(lambda y: (y, {"cache": Opaque(y)}))), torch.rand(6, 4)
    logits, other = model(x, GAMMA)
    assert isinstance(other["cache"], PerDraw)
    torch.testing.assert_close(torch.cat([own.tensor for own in other["cache"]]), logits)


# --- what vmap cannot do ---


class Looking(nn.Module):
    """Looks at the values of what it computed."""

    def __init__(self, look):
        super().__init__()
        self.linear, self.look = nn.Linear(4, 2), look

    def forward(self, x):
        return self.look(self.linear(x))


@pytest.mark.parametrize(
    "look",
    [
        lambda y: -y if y.sum() > 0 else y,
        lambda y: y * float(y.detach().mean()),
        lambda y: torch.from_numpy(y.detach().numpy()) + y,
        lambda y: y[(-y[:, 0]).argsort() if y[0, 0] > 0 else [0, 1]],
        lambda y: torch.zeros(2, 2).add_(y),
    ],
    ids=["branch", "number", "numpy", "mask", "in place"],
)
def test_a_primary_that_vmap_cannot_run_is_run_in_turn(look):
    model, x = make(Looking(look)), torch.randn(6, 4)
    expected = torch.cat(of_each_draw(model, chunks(GAMMA, x), GAMMA))
    torch.testing.assert_close(model(x, GAMMA), expected)


def test_an_error_of_the_primary_is_raised_as_it_is():
    def fail(y):
        raise RuntimeError("in the primary")

    with pytest.raises(RuntimeError, match=r"^in the primary$") as raised:
        make(Looking(fail))(torch.rand(6, 4), GAMMA)
    assert raised.value.__context__ is None


# --- what a primary takes ---


@dataclass
class Batch:
    x: Tensor
    scale: float
    shift: Tensor | None = None


@dataclass(frozen=True)
class FrozenBatch:
    x: Tensor
    scale: float


class PairBatch(NamedTuple):
    x: Tensor
    scale: float


class Taking(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, batch, *more):
        x, scale = (
            (batch["x"], batch["scale"])
            if isinstance(batch, Mapping)
            else tuple(batch)[:2]
            if isinstance(batch, (list, tuple))
            else (batch.x, batch.scale)
        )
        assert x.ndim == 2
        y = self.linear(x) * scale
        shift = getattr(batch, "shift", None)
        return y if shift is None else y + shift


@pytest.mark.parametrize("in_turn", [False, True], ids=["vmap", "in turn"])
@pytest.mark.parametrize(
    "make_batch",
    [
        lambda x: Batch(x, 2.0),
        lambda x: Batch(x, 2.0, x[:, :1]),
        lambda x: FrozenBatch(x, 2.0),
        lambda x: PairBatch(x, 2.0),
        lambda x: [x, 2.0],
        lambda x: {"x": x, "scale": 2.0},
        lambda x: Tagged("tag", x=x, scale=2.0),
        lambda x: types.MappingProxyType({"x": x, "scale": 2.0}),
    ],
    ids=["dataclass", "two", "frozen", "named", "list", "dict", "subclass", "mapping"],
)
def test_inputs_are_split_whatever_holds_them(make_batch, in_turn):
    model, x = make(Taking(), in_turn), torch.rand(6, 4)
    given = make_batch(x)
    parts = [make_batch(part) for part in x.chunk(3)]
    expected = torch.cat(of_each_draw(model, lambda draw: (parts[draw],), GAMMA))
    torch.testing.assert_close(model((given,), GAMMA), expected)
    torch.testing.assert_close(model({"batch": given}, GAMMA), expected)
    assert tuple(x.shape) == (6, 4)


class Slotted:
    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize(
    "make_object",
    [
        Opaque,
        Slotted,
        lambda x: Opaque([x]),
        lambda x: {x},
        lambda x: torch.distributions.Normal(x, 1),
    ],
)
def test_an_object_whose_tensors_cannot_be_split_is_refused(make_object):
    model, x = make(Taking()), torch.rand(6, 4)
    with pytest.raises(UsageError, match=r"3 draws, and more\[0\] is a \w+, whose tensors"):
        model((Batch(x, 1.0), make_object(x)), GAMMA)


def test_objects_without_a_part_of_the_batch_go_to_each_draw_as_they_are():
    seen = []

    class Seeing(Taking):
        def forward(self, batch, *more):
            seen.extend(more)
            return super().forward(batch)

    others = (range(3), nn.Linear(2, 2), torch.relu, lambda x: x, Opaque(3), {"a": [1]}, None, "w")
    make(Seeing())((Batch(torch.rand(6, 4), 1.0), *others), GAMMA)
    assert all(found is given for found, given in zip(seen, others, strict=True))


def test_an_input_without_features_is_split():
    class Ignoring(Taking):
        def forward(self, x, empty):
            assert empty.shape == (2, 0)
            return self.linear(x)

    assert make(Ignoring())((torch.rand(6, 4), torch.rand(6, 0)), GAMMA).shape == (6, 2)


# --- samples along the second dimension ---


def attention_encoder(batch_first: bool = False) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Around(nn.Module):
    """Calls a layer on samples along the second dimension, if it moves them there."""

    def __init__(self, layer, moves, reduction=1):
        super().__init__()
        self.embed, self.layer = nn.Linear(4, 4), layer
        self.moves, self.reduction = moves, reduction

    def forward(self, x):
        x = self.embed(x)
        x = x.transpose(0, 1) if self.moves else x[:: self.reduction]
        if isinstance(self.layer, nn.MultiheadAttention):
            x, _ = self.layer(query=x, key=x, value=x)
        else:
            x = self.layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x.transpose(0, 1) if self.moves else x


LAYERS = {
    "encoder": attention_encoder,
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "lstm": lambda: nn.LSTM(4, 4),
    "gru": lambda: nn.GRU(4, 4, num_layers=2),
}


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), attention_encoder()), r"1\.layers\.0\.self_attn"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4)), "1, a GRU,"),
    ],
)
def test_draws_of_a_network_of_layers_of_torch_that_takes_samples_second_are_refused(build, name):
    model, x = make(build()), torch.rand(6, 6, 4)
    model(x, 0.3)
    model.at(torch.rand(1, 1))(x)
    with pytest.raises(UsageError, match=f"3 draws, and {name}.* takes samples along the second"):
        model(x, GAMMA)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("samples", [6, 9, 3], ids=["two", "three", "one"])
def test_a_network_that_moves_its_samples_to_the_second_dimension_is_right(layer, samples):
    model, x = make(Around(LAYERS[layer](), moves=True)), torch.rand(samples, 5, 4)
    expected = torch.cat(of_each_draw(model, chunks(GAMMA, x), GAMMA))
    torch.testing.assert_close(model(x, GAMMA), expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("time", [3, 6, 12])
@pytest.mark.parametrize("samples", [5, 6])
def test_a_network_that_does_not_move_its_samples_is_refused(layer, time, samples):
    model, x = make(Around(LAYERS[layer](), moves=False)), torch.rand(time, samples, 4)
    model(x, 0.3)
    name = r"layer\.layers\.0\.self_attn" if layer == "encoder" else "layer"
    shape = rf"\({time // 3}, {samples}, 4\)"
    with pytest.raises(UsageError, match=f"^{name}, a .* input of shape {shape}.*batch_first=True"):
        model(x, GAMMA)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_shorter_time_does_not_hide_that_samples_were_not_moved():
    model = make(Around(nn.GRU(4, 4), moves=False, reduction=2))
    with pytest.raises(UsageError, match=r"layer, a GRU, .* \(2, 5, 4\)"):
        model(torch.rand(12, 5, 4), GAMMA)


def test_where_sizes_cannot_tell_where_samples_are_draws_are_refused():
    model = make(Around(nn.GRU(4, 4), moves=True))
    with pytest.raises(UsageError, match=r"layer, a GRU, .* 2 samples a draw .* \(2, 2, 4\)"):
        model(torch.rand(6, 2, 4), GAMMA)


def test_a_network_that_moves_its_samples_by_modules_is_right():
    class Swap(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1)

    model, x = make(nn.Sequential(Swap(), attention_encoder(), Swap())), torch.rand(6, 5, 4)
    expected = torch.cat(of_each_draw(model, chunks(GAMMA, x), GAMMA))
    torch.testing.assert_close(model(x, GAMMA), expected)


def test_unbatched_inputs_of_one_gamma_a_sample_are_right_unless_they_might_be_samples():
    class Unbatched(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.layer, self.first = nn.MultiheadAttention(4, 2), first

        def forward(self, x):
            x = x[0] if self.first else x
            return self.layer(x, x, x)[0]

    model, x = make(Unbatched(first=True), batch_dims={"output": 0}), torch.rand(3, 5, 4)
    expected = torch.cat(of_each_draw(model, chunks(GAMMA, x), GAMMA))
    torch.testing.assert_close(model(x, GAMMA), expected)
    with pytest.raises(UsageError, match=r"1 samples a draw .* shape \(1, 4\)"):
        make(Unbatched(first=False))(torch.rand(3, 4), GAMMA)


def test_a_layer_with_samples_first_is_not_looked_at():
    model, x = make(Around(attention_encoder(True), moves=False)), torch.rand(6, 2, 4)
    expected = torch.cat(of_each_draw(model, chunks(GAMMA, x), GAMMA))
    torch.testing.assert_close(model(x, GAMMA), expected)


def test_calls_in_other_threads_and_inside_are_checked_by_their_own_numbers_of_samples():
    inner = make(Around(nn.GRU(4, 4), moves=True))
    of_inner = ThetaConfig(predicted=["hypernetwork.*"])
    said = DrawsConfig({"gamma": 0})
    outer = HyperModel(inner, Uniform(), hypernetwork=SMALL, theta=of_inner, draws=said)
    x = torch.rand(12, 4, 4)  # four samples for each outer draw, as many as there are times,
    gamma = torch.tensor([[0.2], [0.8]]).repeat(3, 1)
    unsaid = HyperModel(inner, Uniform(), hypernetwork=SMALL, theta=of_inner)
    with pytest.raises(UsageError, match="4 samples a draw"):
        unsaid((x, 0.2), GAMMA)
    pairs = {"inputs": x, "gamma": gamma}  # but two for each inner one
    expected = of_each_draw(outer, chunks(GAMMA, x, gamma), GAMMA)
    torch.testing.assert_close(outer(pairs, GAMMA), torch.cat(expected))

    started, done, wrong = threading.Event(), threading.Event(), []

    class Waiting(nn.Linear):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                started.set()
                assert done.wait(10)
            return super().forward(x)

    model = make(Around(nn.GRU(4, 4), moves=True))
    model.primary.embed = Waiting(4, 4)

    def work() -> None:
        try:
            model(torch.rand(12, 5, 4), GAMMA)  # four samples a draw
        except Exception as error:
            wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    model(torch.rand(6, 4, 4), GAMMA)  # two; four times
    model(torch.rand(1, 4, 4), 0.3)
    done.set()
    thread.join()
    assert not wrong


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_or_pickled_model_checks_its_own_layers(duplicate):
    model, x = make(Around(nn.GRU(4, 4), moves=False)), torch.rand(6, 5, 4)
    for own in (model, duplicate(model)):
        with pytest.raises(UsageError, match="layer, a GRU"):
            own(x, GAMMA)
    changed = duplicate(model)
    changed.primary.layer = nn.GRU(4, 4, batch_first=True)
    assert changed(x, GAMMA).shape == (6, 5, 4)
