"""References of a network to its own parts, which a call with other weights must not miss.

The truth is the same network without them: two layers, called by their functions.
"""

import copy
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mip_lightning import HyperModel, HypernetworkConfig, Uniform, UsageError


def make(primary: nn.Module) -> HyperModel:
    return HyperModel(primary, Uniform(), hypernetwork=HypernetworkConfig(hidden_sizes=[4, 8]))


REGISTRY: dict[str, nn.Module] = {}


class Base(nn.Module):
    """Two layers, of which a subclass finds the second one somehow."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def found(self):
        return self.second

    def forward(self, x):
        return self.found()(self.first(x))


class ByRegistry(Base):
    """A registry of the module's file, filled in the first call."""

    def found(self):
        if "second" not in REGISTRY:
            REGISTRY["second"] = self.second
        return REGISTRY["second"]


class ByWeakReference(Base):
    """Fairscale issue 816."""

    def __init__(self):
        super().__init__()
        self.reference = weakref.ref(self.second)

    def found(self):
        return self.reference()


class ByProxy(Base):
    def __init__(self):
        super().__init__()
        self.proxy = [weakref.proxy(self.second)]

    def found(self):
        return self.proxy[0].forward


class ByClass(Base):
    layers: ClassVar[list[nn.Module]] = []

    def __init__(self):
        super().__init__()
        self.layers[:] = [self.second]

    def found(self):
        return self.layers[0]


def expected(model, x, gamma):
    """What the same network without odd references computes with the weights."""
    theta = model.at(gamma).theta
    hidden = F.linear(x, theta["first.weight"], theta["first.bias"])
    return F.linear(hidden, theta["second.weight"], theta["second.bias"])


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("build", [ByRegistry, ByWeakReference, ByProxy, ByClass])
def test_references_that_are_hard_to_find_are_followed(build, draws):
    REGISTRY.clear()
    model, x = make(build()), torch.rand(4, 3)
    gamma = torch.tensor([[0.2], [0.7]])[:draws]
    for _ in range(4):
        found = model.at(gamma)(x)
        parts = zip(x.chunk(draws), gamma, strict=True)
        wanted = torch.cat([expected(model, part, own) for part, own in parts])
        torch.testing.assert_close(found, wanted)
    model.at(gamma)(x).sum().backward()
    assert model.primary.second.weight.grad.abs().sum() > 0


def test_a_weight_that_is_kept_itself_is_refused():
    class Keeping(Base):
        kept: ClassVar[list[nn.Parameter]] = []

        def __init__(self):
            super().__init__()
            self.kept[:] = [self.second.weight]

        def found(self):
            return lambda x: x @ self.kept[0].T

    with pytest.raises(UsageError, match=r"Keeping keeps the parameter second\.weight by"):
        make(Keeping())(torch.rand(2, 3), 0.3)


def test_hooks_put_on_after_a_call_see_the_weights():
    network = Base()
    model, x = make(network), torch.rand(2, 3)
    for _ in range(3):
        torch.testing.assert_close(model(x, 0.3), expected(model, x, 0.3))
    network.first.register_forward_hook(lambda module, args, output: network.second(output))
    theta = model.at(0.3).theta
    twice = F.linear(expected(model, x, 0.3), theta["second.weight"], theta["second.bias"])
    torch.testing.assert_close(model(x, 0.3), twice)


@pytest.mark.parametrize("grad", [True, False])
def test_an_attribute_that_is_set_between_calls_counts_and_gets_a_gradient(grad):
    """As conditioning is usually done; the same primary serves several batches of evaluation."""

    class Conditioned(nn.Linear):
        context = None

        def forward(self, x):
            return super().forward(x) + self.context["encoded"][0]

    network, encoder = Conditioned(3, 3), nn.Linear(2, 3)
    model, x = make(network), torch.rand(2, 3)
    with torch.set_grad_enabled(grad):
        network.eval()
        primary = model.at(0.3)
        for seed in range(4):
            y = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed))
            network.context = {"encoded": [encoder(y)]}
            plain = F.linear(x, primary.theta["weight"], primary.theta["bias"])
            torch.testing.assert_close(primary(x), plain + encoder(y))
    if grad:
        encoder.zero_grad()
        network.context = {"encoded": [encoder(y)]}
        model(x, 0.3).sum().backward()
        assert encoder.weight.grad.abs().sum() > 0


def test_nothing_of_a_graph_is_kept_for_an_attribute_that_was_set():
    network = Base()
    model, x = make(network), torch.rand(2, 3)
    model(x, 0.3)
    context = nn.Linear(3, 3)(x) * 2
    network.context = context
    model(x, 0.3)
    network.context = None
    gone = weakref.ref(context)
    del context
    gc.collect()
    assert gone() is None


def test_a_checkpoint_in_a_swapped_network_is_refused():
    """Its gradient would be that of theta0, in silence."""

    class Closure(Base):
        def __init__(self):
            super().__init__()
            second = self.second
            self.run = lambda x: second(x)

        def forward(self, x):
            return checkpoint(self.run, self.first(x), use_reentrant=False)

    network = Closure()
    model, x = make(network), torch.rand(2, 3)
    torch.testing.assert_close(model(x, 0.3), expected(model, x, 0.3))
    with pytest.raises(UsageError, match="runs again in the backward pass"):
        model(x, 0.3).sum().backward()
    checkpoint(copy.deepcopy(network.second), x, use_reentrant=False).sum().backward()


# The compiler looks at the gradient of the weights it is given, which are computed tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("fullgraph", [True, False])
def test_parts_that_are_compiled_are_called(fullgraph):
    network = Base()
    network.second = torch.compile(network.second, backend="eager", fullgraph=fullgraph)
    ours = HyperModel(network, Uniform())
    x, theta = torch.rand(2, 3), ours.at(0.3).theta
    hidden = F.linear(x, theta["first.weight"], theta["first.bias"])
    last = [theta[f"second._orig_mod.{name}"] for name in ("weight", "bias")]
    torch.testing.assert_close(ours(x, 0.3), F.linear(hidden, *last))
