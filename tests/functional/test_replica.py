"""A call with other weights leaves nothing behind, whoever else calls, and whatever comes later."""

import copy
import functools
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from mip_lightning import HyperModel, HypernetworkConfig, Uniform, UsageError
from mip_lightning.functional.replica import ReplicaCall
from mip_lightning.networks import LeNet

SMALL = HypernetworkConfig(hidden_sizes=[4, 8])


def make(primary: nn.Module) -> HyperModel:
    return HyperModel(primary, Uniform(), hypernetwork=SMALL)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


class Checkpointed(nn.Module):
    """Runs its layers again in the backward pass, where asked for."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.again = True

    def forward(self, x):
        for layer in self.layers:
            block = functools.partial(self.block, layer)
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return x

    def block(self, layer, x):
        return layer(x).tanh()


def test_activation_checkpointing_gives_the_gradients_of_an_ordinary_call():
    model, x = make(Checkpointed()), torch.rand(5, 4)
    found = []
    for again in (True, False):
        model.primary.again = again
        # Two calls before one backward pass: each must find its own weights again.
        (model(x, 0.2).square().sum() + model(x, 0.9).square().sum()).backward()
        found.append(gradients(model))
    for with_checkpoints, without in zip(*found, strict=True):
        torch.testing.assert_close(with_checkpoints, without)


def test_two_threads_run_two_gammas_on_one_model():
    model, x = make(LeNet()).eval(), torch.rand(2, 1, 16, 16)
    gammas = [0.1, 0.9]
    with torch.no_grad():
        expected = [model(x, gamma) for gamma in gammas]
    wrong: list[float] = []

    def work(gamma: float, output: torch.Tensor) -> None:
        with torch.no_grad():
            for _ in range(40):
                if not torch.equal(model(x, gamma), output):
                    wrong.append(gamma)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(gammas, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Remembering(nn.Module):
    """Keeps its layers in a list and by a bound method too, and what it last computed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.in_order = [self.second, self.first]
        self.method = self.twice
        self.latest = None

    def twice(self, x):
        return self.second(self.second(x))

    def forward(self, x):
        for layer in self.in_order:
            x = layer(x)
        self.latest = x
        return self.method(x)


class Closed(nn.Module):
    """Keeps a layer in a function, which no copy can look into."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.function = lambda x: self.layer(x)

    def forward(self, x):
        return self.function(x)


class Uncopied(nn.Linear):
    """Makes copies that do not hold what they are given."""

    def __deepcopy__(self, memo):
        return Uncopied(3, 3)


@pytest.mark.parametrize(
    "network",
    [Remembering, Closed, functools.partial(Uncopied, 3, 3)],
    ids=["Remembering", "Closed", "Uncopied"],
)
def test_a_network_that_refers_to_its_layers_in_any_way_is_called_with_the_weights(network):
    primary = network()
    weights = {name: torch.rand_like(p) for name, p in primary.named_parameters()}
    x = torch.rand(2, 3)
    expected = functional_call(copy.copy(primary), weights, (x,))
    torch.testing.assert_close(ReplicaCall(primary, list(weights))(weights, (x,), {}), expected)


def test_what_a_forward_sets_does_not_stay_in_the_primary():
    model = make(Remembering())
    model(torch.rand(2, 3), 0.5)
    model(torch.rand(2, 3), torch.rand(2, 1))
    assert model.primary.latest is None


def test_hooks_of_the_primary_see_each_call():
    model = make(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    seen = []
    for layer in model.primary:
        layer.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    model(torch.rand(2, 3), 0.5)
    assert seen == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_or_pickled_model_is_whole_and_its_own(duplicate):
    model, x = make(LeNet()), torch.rand(2, 1, 8, 8)
    before = model(x, 0.3)
    again = duplicate(model)
    torch.testing.assert_close(again(x, 0.3), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(again(x, 0.3), before)


def test_a_call_within_a_call_has_its_own_weights():
    class Doubling(nn.Linear):
        model = None

        def forward(self, x, inner=None):
            own = super().forward(x)
            if inner is not None:
                own = own + self.model[0]({"x": x}, inner)
            return own

    primary = Doubling(3, 3)
    model = make(primary)
    Doubling.model = [model]
    x = torch.rand(2, 3)
    together = model({"x": x, "inner": 0.9}, 0.1)
    torch.testing.assert_close(together, model({"x": x}, 0.1) + model({"x": x}, 0.9))


def test_an_lstm_and_its_gradient_see_the_predicted_weights():
    model, x = make(nn.LSTM(3, 4, batch_first=True)), torch.rand(4, 5, 3)
    output, _ = model(x, 0.2)
    assert output.shape == (4, 5, 4)
    output.sum().backward()
    assert model.hypernetwork.head.weight.grad.abs().sum() > 0
    plain, _ = model.materialize(0.2)(x)
    torch.testing.assert_close(output, plain)


class Shared(nn.Module):
    """Calls one layer under two names."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(3, 3)
        self.first = layer
        self.both = nn.Sequential(layer, nn.ReLU(), layer)

    def forward(self, x):
        return self.both(self.first(x))


@pytest.mark.parametrize(
    "build",  # in the test, once its seed is set
    [
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3))),
        Shared,
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))),
    ],
    ids=["weight_norm", "orthogonal", "shared", "fx"],
)
def test_an_odd_network_computes_what_it_is_materialized_to(build):
    model, x = make(build()).eval(), torch.rand(2, 3)
    torch.testing.assert_close(model(x, 0.7), model.materialize(0.7)(x))
    assert not torch.allclose(model(x, 0.7), model(x, 0.1))


def test_a_primary_may_be_changed_after_it_was_called():
    model, x = make(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))), torch.rand(2, 3)
    model(x, 0.3)
    model.primary[2] = nn.Linear(3, 2)
    torch.testing.assert_close(model(x, 0.3), model.materialize(0.3)(x))
    model.load_state_dict({n: v + 0.1 for n, v in model.state_dict().items()}, assign=True)
    torch.testing.assert_close(model(x, 0.3), model.materialize(0.3)(x))
    model.double()
    torch.testing.assert_close(model(x.double(), 0.3), model.materialize(0.3)(x.double()))


def test_a_layer_put_in_after_a_call_keeps_its_own_statistics():
    model, x = make(nn.Sequential(nn.Linear(3, 3), nn.Identity())), torch.rand(8, 3)
    model(x, 0.3)
    model.primary[1] = nn.BatchNorm1d(3, affine=False)
    model(x, 0.3)
    assert model.primary[1].num_batches_tracked == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm")  # it is what cannot be copied
def test_a_primary_that_pytorch_cannot_copy_is_called_but_not_materialized():
    model, x = make(nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))), torch.rand(2, 3)
    assert not torch.allclose(model(x, 0.7), model(x, 0.1))
    with pytest.raises(UsageError, match=r"cannot be copied.*parametrizations"):
        model.materialize(0.7)
