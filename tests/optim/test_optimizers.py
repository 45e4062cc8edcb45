"""The factored optimizers are torch's: the same weights, state and options, from factors."""

import copy

import pytest
import torch
from torch import nn

from mip_lightning import UsageError
from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.functional.linear import factored_linear, keep_in_factors
from mip_lightning.optim._base import check_moments
from mip_lightning.optim._update import _rounded
from mip_lightning.optim.optimizers import (
    FACTORED,
    FactoredAdam,
    FactoredAdamW,
    FactoredSGD,
)

ROWS, WIDTH = 1100, 64


class Small(nn.Module):
    """A head with two ordinary parameters before it."""

    def __init__(self, product):
        super().__init__()
        self.product = product
        self.trunk = nn.Linear(3, WIDTH)
        self.weight = nn.Parameter(torch.randn(ROWS, WIDTH) / 8)

    def forward(self, gamma):
        return self.product(self.trunk(gamma).tanh(), self.weight)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks in each step, the last one smaller."""
    monkeypatch.setattr("mip_lightning.functional.linear.MIN_FACTORED", 2**16)
    monkeypatch.setattr("mip_lightning.optim._update.BLOCK_NUMBERS", {"cpu": 256 * WIDTH})


def both(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Small, Small]:
    torch.manual_seed(seed)
    ours = Small(factored_linear).to(dtype)
    theirs = copy.deepcopy(ours)
    theirs.product = nn.functional.linear
    return ours, theirs


def train(model, optimizer, steps=100, accumulate=1, clip=None, schedule=False, scaler=None):
    """Fit random targets that change; the same for every model."""
    generator = torch.Generator().manual_seed(1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if schedule else None
    dtype = model.weight.dtype
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            gamma = torch.rand(2, 3, generator=generator).to(dtype)
            target = torch.randn(2, ROWS, generator=generator).to(dtype)
            loss = (model(gamma) - target).square().mean() * 10
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if scheduler is not None:
            scheduler.step()


OPTIMIZERS = {
    "adam": (torch.optim.Adam, {}),
    "adam l2": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adam amsgrad": (torch.optim.Adam, {"amsgrad": True, "betas": (0.8, 0.9)}),
    "adam decoupled": (torch.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adam maximize": (torch.optim.Adam, {"maximize": True, "lr": 1e-4}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2}),
    "momentum": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (
        torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
}
RUNS = {
    "plain": {},
    "accumulated": {"accumulate": 3},
    "clipped": {"clip": 0.2},
    "scheduled": {"schedule": True},
    "all": {"accumulate": 2, "clip": 0.2, "schedule": True},
}


@pytest.mark.parametrize(
    ("kind", "run"),
    [*((kind, "all") for kind in OPTIMIZERS), *(("adam l2", run) for run in RUNS if run != "all")],
)
def test_100_steps_are_those_of_torchs_optimizer_to_rounding(kind, run):
    (torchs, options), run = OPTIMIZERS[kind], RUNS[run]
    ours, theirs = both()
    exact = copy.deepcopy(theirs).double()
    optimizers = [
        FACTORED[torchs](ours.parameters(), **options),
        torchs(theirs.parameters(), fused=True, **options),
        torchs(exact.parameters(), **options),
    ]
    for model, optimizer in zip((ours, theirs, exact), optimizers, strict=True):
        train(model, optimizer, **run)
    assert isinstance(ours.weight.grad, FactoredGradient)
    assert ours.weight.grad.factors is not None
    assert ours.weight.grad._value.matrix is None  # nor was it written out on the way
    for a, b, c in zip(ours.parameters(), theirs.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        rounding = (b.double() - c).norm()  # of torch's own float32
        assert (a.double() - c).norm() <= 2 * rounding + 1e-6


@pytest.mark.parametrize("torchs", FACTORED, ids=lambda kind: kind.__name__)
def test_in_float64_the_weights_are_those_of_torch_to_12_digits(torchs):
    ours, theirs = both(dtype=torch.float64)
    options = {"momentum": 0.9} if torchs is torch.optim.SGD else {}
    train(ours, FACTORED[torchs](ours.parameters(), lr=1e-2, **options), steps=20)
    train(theirs, torchs(theirs.parameters(), lr=1e-2, **options), steps=20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_checkpoints_go_from_torchs_optimizer_to_ours_and_back(kind):
    torchs, options = kind
    ours, theirs = both()
    first = torchs(theirs.parameters(), **options)
    train(theirs, first, steps=5)
    ours.load_state_dict(theirs.state_dict())
    second = FACTORED[torchs](ours.parameters(), **options)
    second.load_state_dict(first.state_dict())
    train(ours, second, steps=5)
    third = torchs(theirs.parameters(), **options)
    theirs.load_state_dict(ours.state_dict())
    third.load_state_dict(second.state_dict())
    train(theirs, third, steps=5)
    assert first.state_dict()["state"].keys() == second.state_dict()["state"].keys()
    for a, b in zip(first.state.values(), third.state.values(), strict=True):
        assert a.keys() == b.keys()
    expected = both()[1]
    undisturbed = torchs(expected.parameters(), **options)
    for _ in range(3):
        train(expected, undisturbed, steps=5)
    for a, b in zip(theirs.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_groups_have_options_of_their_own():
    ours, theirs = both()

    def groups(model):
        head = {"params": [model.weight], "lr": 1e-2, "weight_decay": 0.2, "betas": (0.5, 0.6)}
        return [{"params": model.trunk.parameters()}, head]

    train(ours, FactoredAdam(groups(ours), lr=1e-4), steps=20)
    train(theirs, torch.optim.Adam(groups(theirs), lr=1e-4), steps=20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_learning_rate_can_be_a_tensor():
    ours, theirs = both()
    train(ours, FactoredAdam(ours.parameters(), lr=torch.tensor(1e-2)), steps=5)
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2), steps=5)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_a_gradient_scaler_works_with_it_and_skips_what_is_not_finite(clip):
    ours, theirs = both()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(ours, FactoredAdam(ours.parameters()), steps=20, clip=clip, scaler=scaler)
    train(theirs, torch.optim.Adam(theirs.parameters()), steps=20, clip=clip)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)
    optimizer = FactoredAdam(ours.parameters())
    before = ours.weight.detach().clone()
    scaler.scale(ours(torch.full((1, 3), float("inf"))).sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert torch.equal(ours.weight, before)


def test_options_of_torchs_optimizer_reach_its_ordinary_parameters():
    model, _ = both()
    assert FactoredAdam(model.parameters()).defaults["fused"]
    assert not FactoredAdam(model.parameters(), fused=False).defaults["fused"]
    assert not FactoredAdamW(model.parameters(), foreach=True).defaults["fused"]
    assert not FactoredSGD(model.parameters(), differentiable=True).defaults["fused"]
    for options in ({"fused": False}, {"foreach": True}, {"capturable": True}):
        ours, theirs = both()
        train(ours, FactoredAdam(ours.parameters(), **options), steps=5)
        train(theirs, torch.optim.Adam(theirs.parameters()), steps=5)
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)


def test_hooks_and_the_closure_are_called_once_a_step():
    torch.optim.Adam([nn.Parameter(torch.ones(1))])  # from now on torch has wrapped its step
    model, _ = both()
    optimizer = FactoredAdam(model.parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))

    def closure():
        calls.append("closure")
        optimizer.zero_grad()
        loss = model(torch.rand(1, 3)).square().sum()
        loss.backward()
        return loss

    before = model.weight.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert calls == ["before", "closure", "after"]
    assert not torch.equal(model.weight, before)
    assert model.weight.grad.factors is not None  # still there for whoever looks at it


@pytest.mark.parametrize(
    "other", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad]
)
@pytest.mark.parametrize("foreach", [False, True])
def test_other_optimizers_take_the_matrix(other, foreach):
    options = {"momentum": 0.9} if other in (torch.optim.SGD, torch.optim.RMSprop) else {}
    ours, theirs = both()
    keep_in_factors(ours.weight)
    for model in (ours, theirs):
        optimizer = other(model.parameters(), lr=1e-3, foreach=foreach, **options)
        train(model, optimizer, steps=10, accumulate=2, clip=0.3)
        for state in optimizer.state.values():
            assert all(type(value) is torch.Tensor for value in state.values())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_start_anew_after_zero_grad(set_to_none):
    model, _ = both()
    optimizer = FactoredAdam(model.parameters())
    for _ in range(2):
        optimizer.zero_grad(set_to_none)
        model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad.factors[0].abs().sum() == ROWS
    assert isinstance(model.weight.grad, FactoredGradient)


def test_a_parameter_may_get_its_first_gradient_later_than_others():
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2, "nesterov": False}
    results = []
    for kind, more in ((FactoredSGD, {}), (torch.optim.SGD, {"foreach": True})):
        for maximize in (False, True):
            early, late = (nn.Parameter(torch.arange(3.0) + n) for n in range(2))
            optimizer = kind([early, late], maximize=maximize, **options, **more)
            for step in range(4):
                optimizer.zero_grad()
                (early.square().sum() + (late.sin().sum() if step else 0.0)).backward()
                optimizer.step()
            results.append((early, late))
    for ours, theirs in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_fused_kernels_are_left_where_torch_has_none():
    plain, gaps = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 6)[:, ::2])
    complex_valued = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert FactoredAdam([plain]).defaults["fused"]
    assert FactoredAdam([{"params": plain}]).defaults["fused"]
    assert FactoredAdam([("plain", plain)]).defaults["fused"]
    for other in (gaps, complex_valued):
        optimizer = FactoredAdam(iter([plain, other]), lr=0.1)
        assert not optimizer.defaults["fused"]
        other.grad = torch.ones_like(other)
        optimizer.step()
        torch.testing.assert_close(other.detach(), torch.full_like(other, 0.9))


def test_a_parameter_by_itself_is_refused_as_by_torch():
    for kind in (torch.optim.Adam, FactoredAdam):
        with pytest.raises(TypeError, match="should be an iterable"):
            kind(torch.ones(2))


def test_groups_that_come_later_are_taken_too():
    model, _ = both()
    optimizer = FactoredAdam(model.trunk.parameters())
    optimizer.add_param_group({"params": [model.weight]})
    model(torch.rand(1, 3)).square().sum().backward()
    assert isinstance(model.weight.grad, FactoredGradient)
    optimizer.step()
    with pytest.raises(UsageError, match="moments='float16'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "moments": "float16"})


# --- moments in bfloat16 ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [(FactoredAdam, {"amsgrad": True}), (FactoredAdamW, {}), (FactoredSGD, {"momentum": 0.9})],
)
def test_moments_in_bfloat16_take_gradients_that_were_written_out_now_and_then(kind, options):
    found = []
    for moments in ("float32", "bfloat16"):
        model, _ = both()
        optimizer = kind(model.parameters(), lr=1e-3, moments=moments, **options)
        for step in range(9):
            optimizer.zero_grad()
            (model(torch.full((1, 3), 0.1 * step)) - 1.0).square().mean().backward()
            if step % 3 == 1:
                nn.utils.clip_grad_value_(model.parameters(), 1e-4)
                assert model.weight.grad.factors is None
            optimizer.step()
        found.append(model)
        dtypes = {v.dtype for name, v in optimizer.state[model.weight].items() if name != "step"}
        assert dtypes == {getattr(torch, moments)}
    start = both()[0].weight
    moved = (found[0].weight - start).norm()
    assert (found[1].weight - found[0].weight).norm() < 0.02 * moved


def test_rounding_leaves_what_is_no_number():
    values = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]])
    values.view(torch.int32)[0, 0] = 2**31 - 1  # the NaN that CUDA makes
    rounded = _rounded(values, torch.full((1, 4), 2**16 - 1, dtype=torch.int32))
    assert rounded[0, 0].isnan()
    assert rounded[0, 1:].tolist() == [float("inf"), -float("inf"), 1.0]


def test_moments_in_bfloat16_follow_those_in_float32_where_rounding_to_nearest_stands_still():
    torch.manual_seed(0)
    shape = (2048, 64)
    left, right = torch.ones(1, shape[0]), torch.ones(1, shape[1])
    found = {}
    for moments in ("float32", "bfloat16"):
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = FactoredAdam([weight], lr=1e-3, betas=(0.9, 0.999), moments=moments)
        for step in range(60):
            weight.grad = FactoredGradient(left * (1.0 if step < 30 else 0.5), right)
            optimizer.step()
        found[moments] = optimizer.state[weight]
        assert found[moments]["exp_avg_sq"].dtype == getattr(torch, moments)
    for name in ("exp_avg", "exp_avg_sq"):
        expected = found["float32"][name].mean()
        values = found["bfloat16"][name].float()
        # The mean is right: within some standard errors of what rounding scatters.
        tolerance = 6 * float(values.std()) / values.numel() ** 0.5 * 30 + 1e-3 * float(expected)
        assert abs(values.mean() - expected) < tolerance
        assert values.std() > 0
    # Rounded to the nearest the second moment would have stuck: its steps are too small.
    second = torch.tensor(0.02, dtype=torch.bfloat16)
    assert torch.equal((second.float() * 0.999 + 0.001 * 0.02).bfloat16(), second)


@pytest.mark.parametrize(
    ("kind", "options"), [(FactoredAdam, {}), (FactoredSGD, {"momentum": 0.9, "nesterov": True})]
)
def test_moments_in_bfloat16_train_nearly_as_those_in_float32(kind, options):
    losses = []
    for moments in ("float32", "bfloat16"):
        model, _ = both()
        train(model, kind(model.parameters(), lr=3e-3, moments=moments, **options), steps=100)
        losses.append(model(torch.full((1, 3), 0.5)).square().mean().item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_moments_in_bfloat16_survive_a_checkpoint(tmp_path):
    model, other = both()
    optimizer = FactoredAdam(model.parameters(), moments="bfloat16")
    train(model, optimizer, steps=3)
    torch.save(optimizer.state_dict(), "optimizer.pt")
    resumed = FactoredAdam(other.parameters())
    resumed.load_state_dict(torch.load("optimizer.pt", weights_only=True))
    other.product = factored_linear
    before = optimizer.state[model.weight]["exp_avg"].clone()
    assert torch.equal(resumed.state[other.weight]["exp_avg"].bfloat16(), before)
    train(other, resumed, steps=1)
    assert resumed.state[other.weight]["exp_avg"].dtype == torch.bfloat16
    assert resumed.state[other.trunk.weight]["exp_avg"].dtype == torch.float32
    plain = torch.optim.Adam(other.parameters())
    plain.load_state_dict(resumed.state_dict())
    train(other, plain, steps=1)
    assert plain.state[other.weight]["exp_avg"].dtype == torch.float32
    assert copy.deepcopy(optimizer).defaults["moments"] == "bfloat16"


def test_unknown_moments_are_refused():
    with pytest.raises(UsageError, match="moments='float16': choose one of float32, bfloat16"):
        check_moments("float16")


@pytest.mark.parametrize(
    ("kind", "options"), [(FactoredAdam, {}), (FactoredSGD, {"momentum": 0.9})]
)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.contiguous_format, torch.channels_last),
        (torch.channels_last, torch.contiguous_format),
    ],
)
def test_a_checkpoint_of_another_memory_format_goes_on_with_the_same_weights(
    kind, options, before, after
):
    def stepped(memory_format, start, state):
        weight = nn.Parameter(start.clone(memory_format=memory_format))
        optimizer = kind([weight], lr=0.1, **options)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        weight.grad = torch.sin(weight.detach()).contiguous(memory_format=memory_format)
        optimizer.step()
        return weight.detach(), optimizer.state_dict()

    start = torch.randn(4, 3, 3, 3)
    weight, state = stepped(before, start, None)
    expected, _ = stepped(before, weight, state)
    changed, _ = stepped(after, weight, state)
    torch.testing.assert_close(changed, expected)
