"""The head's product: its values and gradients are those of ``F.linear``."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from torch import nn
from torch.nn import functional as F

from mip_lightning import DenseHead, HyperModel, HypernetworkConfig, LowRankHead, Uniform
from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.functional.linear import (
    BLOCK_ROWS,
    factored_linear,
    keep_in_factors,
    why_written_out,
)
from mip_lightning.networks import LeNet
from mip_lightning.optim.optimizers import FactoredAdam

LARGE = (BLOCK_ROWS * 12 + 5, 32)


@pytest.fixture(autouse=True)
def _small_weights_have_factors(monkeypatch):
    monkeypatch.setattr("mip_lightning.functional.linear.MIN_FACTORED", 2**16)


def inputs(num: int, shape: tuple[int, int] = LARGE) -> tuple[torch.Tensor, nn.Parameter]:
    weight = nn.Parameter(torch.randn(shape))
    keep_in_factors(weight)
    return torch.randn(num, shape[1], requires_grad=True), weight


def test_a_weight_whose_optimizer_takes_no_factors_has_an_ordinary_gradient():
    hidden, weight = torch.randn(1, 32), nn.Parameter(torch.randn(LARGE))
    factored_linear(hidden, weight).sum().backward()
    assert type(weight.grad) is torch.Tensor
    FactoredAdam([weight])
    weight.grad = None
    factored_linear(hidden, weight).sum().backward()
    assert isinstance(weight.grad, FactoredGradient)


@pytest.mark.parametrize("shape", [LARGE, (BLOCK_ROWS * 12, 32), (600, 128), (5, 4)])
@pytest.mark.parametrize("num", [1, 2, 8, 9])
def test_product_and_gradients_are_those_of_the_ordinary_product(num, shape):
    hidden, weight = inputs(num, shape)
    with torch.no_grad():
        torch.testing.assert_close(factored_linear(hidden, weight), F.linear(hidden, weight))
    upstream = torch.randn(num, shape[0])
    factored_linear(hidden, weight).backward(upstream)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    F.linear(*exact).backward(upstream.double())
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        torch.testing.assert_close(
            ours.grad.double() + 0, theirs.grad, rtol=1e-4, atol=1e-3 * shape[0] ** 0.5 / 50
        )
    assert isinstance(weight.grad, FactoredGradient) == (why_written_out(num, weight) is None)


def test_large_weights_have_factors_and_small_ones_have_not():
    assert why_written_out(1, torch.empty(LARGE)) is None
    assert "small" in why_written_out(1, torch.empty(5, 4))
    assert "32 draws" in why_written_out(32, torch.empty(LARGE))
    assert "meta" in why_written_out(1, torch.empty(LARGE, device="meta"))
    assert "contiguous" in why_written_out(1, torch.empty(LARGE[::-1]).T)
    assert "parametrization" in why_written_out(1, nn.Parameter(torch.empty(LARGE)) * 2)


@pytest.mark.parametrize(("ranks", "says"), [(1, "copies it"), (2, "2 ranks average it")])
def test_ranks_write_the_gradient_out(ranks, says, monkeypatch):
    hidden, weight = inputs(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: ranks)
        assert says in why_written_out(1, weight)
        factored_linear(hidden, weight).sum().backward()
    assert type(weight.grad) is torch.Tensor
    torch.testing.assert_close(weight.grad, hidden.detach().expand(*LARGE))


def test_gradients_add_up_over_backward_passes_and_calls_in_factors():
    hidden, weight = inputs(2)
    expected = torch.zeros(LARGE)
    for scale in (1.0, 2.0):
        both = factored_linear(hidden, weight) + scale * factored_linear(hidden * scale, weight)
        both.sum().backward()
        expected += (1 + scale**2) * hidden.detach().sum(dim=0)
    assert len(weight.grad.factors[0]) == 8
    torch.testing.assert_close(weight.grad + 0, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_can_be_differentiated():
    hidden = torch.randn(2, 128, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(512, 128, dtype=torch.float64, requires_grad=True)
    keep_in_factors(weight)
    assert why_written_out(2, weight) is None
    results = []
    for product in (factored_linear, F.linear):
        gradients = torch.autograd.grad(
            product(hidden, weight).tanh().sum(), (hidden, weight), create_graph=True
        )
        results.append(
            torch.autograd.grad(sum(g.square().sum() for g in gradients), (hidden, weight))
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def through(product):
    def loss(hidden, weight):
        return product(hidden, weight).tanh().sum()

    return loss


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f, argnums=(0, 1)),
    "vmap": lambda f: torch.func.vmap(f, in_dims=(0, None)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f, (0, 1)), in_dims=(0, None)),
    "jvp": lambda f: lambda *x: torch.func.jvp(f, x, tuple(t.sin() for t in x)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch.func.jvp calls it
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_functions_do_as_with_the_ordinary_product(transform):
    hidden, weight = torch.randn(3, 2, 32), torch.randn(LARGE)
    if "vmap" not in transform:
        hidden = hidden[0]
    ours, theirs = (
        TRANSFORMS[transform](through(product))(hidden, weight)
        for product in (factored_linear, F.linear)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # forward mode calls it
def test_forward_mode_and_batched_gradients_do_as_with_the_ordinary_product():
    hidden, weight = inputs(2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(hidden, torch.ones_like(hidden))
        tangent = torch.autograd.forward_ad.unpack_dual(factored_linear(dual, weight)).tangent
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(hidden), weight))
    upstream = torch.randn(3, 2, LARGE[0])
    ours, theirs = (
        torch.autograd.grad(f(hidden, weight), weight, upstream, is_grads_batched=True)[0]
        for f in (factored_linear, F.linear)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_under_autocast_the_product_is_in_half_precision_as_the_ordinary_one():
    hidden, weight = inputs(1)
    with torch.autocast("cpu", torch.bfloat16):
        product = factored_linear(hidden, weight)
    assert product.dtype == torch.bfloat16
    product.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_a_frozen_weight_gets_no_gradient_and_hands_its_inputs_on():
    hidden, weight = inputs(1)
    weight.requires_grad_(False)
    factored_linear(hidden, weight).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, weight.sum(dim=0, keepdim=True), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", [DenseHead, LowRankHead])
def test_a_models_gradient_is_in_factors_and_hooks_see_the_matrix(head):
    model = HyperModel(LeNet(), Uniform(), hypernetwork=HypernetworkConfig(head=head))
    seen = []
    keep_in_factors(model.hypernetwork.head.weight)
    model.hypernetwork.head.weight.register_hook(lambda g: seen.append(g.abs().sum()))
    model(torch.rand(4, 1, 12, 12), torch.rand(2, 1)).square().sum().backward()
    gradient = model.hypernetwork.head.factored_weight.grad
    assert isinstance(gradient, FactoredGradient)
    assert not gradient.written_out().requires_grad
    assert gradient.factors[1].grad_fn is None  # nothing of the graph is kept
    assert len(gradient.factors[0]) == 2
    torch.testing.assert_close(seen[0], gradient.written_out().abs().sum())
    (again,) = torch.autograd.grad(
        model(torch.rand(4, 1, 12, 12), 0.5).sum(), [model.hypernetwork.head.weight]
    )
    assert again.norm() > 0


TRACED = """
import torch
from mip_lightning.networks import LeNet
from mip_lightning import HyperModel, Uniform

model = HyperModel(LeNet(), Uniform()).eval()
traced = torch.jit.trace(model.hypernetwork, torch.tensor([[0.5]]))
torch.jit.save(traced, "traced.pt")
gamma = torch.tensor([[0.25]])
torch.testing.assert_close(torch.jit.load("traced.pt")(gamma), model.hypernetwork(gamma))
"""


def test_a_traced_hypernetwork_can_be_saved():
    """By itself, for the checks of shapes in tests cannot be traced."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
