"""The factored gradient is the matrix it stands for, whatever is done with it."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mip_lightning.functional.factored_gradient import FactoredGradient

SHAPE = (30, 20)


def pair(num: int = 2, seed: int = 0) -> tuple[FactoredGradient, torch.Tensor]:
    """A factored gradient, and its matrix by itself."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(num, SHAPE[0], generator=generator)
    right = torch.randn(num, SHAPE[1], generator=generator)
    return FactoredGradient(left, right), left.T @ right


KEEPS_FACTORS = {
    "add": lambda g: g + pair(seed=1)[0 if isinstance(g, FactoredGradient) else 1],
    "add_": lambda g: g.add_(pair(seed=1)[0 if isinstance(g, FactoredGradient) else 1]),
    "mul": lambda g: g * 3,
    "rmul": lambda g: torch.tensor(3.0) * g,
    "mul_": lambda g: g.mul_(torch.tensor(0.5)),
    "div": lambda g: g / 4,
    "div_": lambda g: g.div_(torch.tensor(0.5)),
    "detach": lambda g: g.detach(),
    "data": lambda g: g.data,
    "zero_": lambda g: g.zero_(),
    "zero_ then add_": lambda g: g.zero_().add_(
        pair(seed=1)[0 if isinstance(g, FactoredGradient) else 1]
    ),
}
WRITES_OUT = {
    "add a matrix": lambda g: g + torch.ones(SHAPE),
    "add a matrix in place": lambda g: g.add_(torch.ones(SHAPE)),
    "onto a matrix": lambda g: torch.ones(SHAPE).add_(g, alpha=0.5),
    "onto a matrix of float64": lambda g: torch.ones(SHAPE, dtype=torch.float64).add_(g),
    "onto itself changed": lambda g: g.clamp_(0, 1).add_(
        pair(seed=1)[0 if isinstance(g, FactoredGradient) else 1]
    ),
    "with alpha": lambda g: g.add_(
        pair(seed=1)[0 if isinstance(g, FactoredGradient) else 1], alpha=2.0
    ),
    "mul by a matrix": lambda g: g * torch.full(SHAPE, 3.0),
    "mul by a row": lambda g: g.mul_(torch.arange(20.0)),
    "neg": lambda g: -g,
    "clamp_": lambda g: g.clamp_(-0.1, 0.1),
    "clone": lambda g: g.clone(),
    "row": lambda g: g[3],
    "transposed": lambda g: g.T,
    "copy_ to": lambda g: torch.zeros(SHAPE).copy_(g),
    "copy_ from": lambda g: g.copy_(torch.ones(SHAPE)),
    "index put": lambda g: g.index_fill_(0, torch.tensor([2]), 7.0),
    "half": lambda g: g.to(torch.float16),
    "double": lambda g: g.double(),
    "sum": lambda g: g.sum(dim=0),
    "1-norm": lambda g: torch.linalg.vector_norm(g, 1),
    "row norms": lambda g: torch.linalg.vector_norm(g, dim=1),
    "spectral norm": lambda g: torch.linalg.matrix_norm(g, 2),
    "is finite": lambda g: g.isfinite(),
    "deepcopy": copy.deepcopy,
    "cat": lambda g: torch.cat([g, torch.ones(SHAPE)]),
    "foreach": lambda g: torch._foreach_add([g, torch.ones(3)], 2.0)[0],
    "foreach clamp": lambda g: (torch._foreach_clamp_max_([g], 0.1), g)[1],
}


@pytest.mark.parametrize("operation", KEEPS_FACTORS.values(), ids=KEEPS_FACTORS)
def test_what_keeps_the_factors_gives_what_the_matrix_gives(operation):
    factored, matrix = pair()
    result, expected = operation(factored), operation(matrix)
    assert isinstance(result, FactoredGradient)
    assert result.factors is not None
    torch.testing.assert_close(result.written_out(), expected)
    torch.testing.assert_close(factored.written_out(), matrix)  # itself too, if it was changed


@pytest.mark.parametrize("operation", WRITES_OUT.values(), ids=WRITES_OUT)
def test_any_other_operation_gives_what_the_matrix_gives(operation):
    factored, matrix = pair()
    result, expected = operation(factored), operation(matrix)
    plain = result.written_out() if result is factored else result
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(factored.written_out(), matrix)
    assert result is factored or type(result) is torch.Tensor


def test_an_operation_in_place_gives_the_gradient_itself():
    factored, _ = pair()
    assert factored.mul_(2) is factored
    assert factored.clamp_(0, 1) is factored
    assert factored.add_(factored.clone()) is factored


def test_what_is_written_to_a_view_or_a_detached_one_is_in_the_gradient():
    factored, matrix = pair()
    factored.detach().mul_(2)
    factored.data.add_(pair(seed=1)[0])
    torch.testing.assert_close(factored + 0, 2 * matrix + pair(seed=1)[1])
    flat = factored.view(-1)
    flat.zero_()
    assert factored.factors is None
    assert (factored + 0).abs().sum() == 0


def test_a_change_of_one_gradient_leaves_others_of_the_same_factors():
    left, right = torch.randn(2, 30), torch.randn(2, 20)
    first, second = FactoredGradient(left, right), FactoredGradient(left, right)
    first.mul_(3)
    first.add_(second)
    torch.testing.assert_close(second.written_out(), left.T @ right)


def test_the_matrix_is_written_out_once_and_kept():
    factored, _ = pair()
    assert factored.written_out() is factored.written_out()
    assert factored.abs().sum() > 0
    assert factored.factors is not None


def test_more_pairs_than_the_matrix_has_room_for_become_the_matrix():
    factored, matrix = pair()
    for seed in range(1, 8):
        factored.add_(pair(seed=seed)[0])
        matrix = matrix + pair(seed=seed)[1]
    assert factored.factors is None  # 16 * (30 + 20) > 30 * 20
    torch.testing.assert_close(factored + 0, matrix)


@given(num=st.integers(1, 6), seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_the_norm_from_gram_matrices_is_that_of_the_matrix(num, seed, scale):
    factored, _ = pair(num, seed)
    left, right = factored.factors
    factored = FactoredGradient(left * scale, right)
    expected = (left.double().T @ right.double()).norm() * scale
    for norm in (
        factored.norm(),
        torch.linalg.vector_norm(factored),
        torch._foreach_norm([factored, torch.ones(2)])[0],
        nn.utils.get_total_norm([factored]),
    ):
        assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert factored._value.matrix is None


def test_the_norm_of_factors_that_cancel_is_zero_and_not_nan():
    left, right = torch.randn(1, 30), torch.randn(1, 20)
    factored = FactoredGradient(torch.cat([left, -left]), torch.cat([right, right]))
    assert 0 <= factored.norm() < 1e-2


@pytest.mark.parametrize("foreach", [None, False, True])
def test_clipping_by_norm_keeps_the_factors_and_clips_as_on_matrices(foreach):
    factored, matrix = pair()
    both = [nn.Parameter(torch.zeros(SHAPE)), nn.Parameter(torch.zeros(7))]
    other = [nn.Parameter(torch.zeros(SHAPE)), nn.Parameter(torch.zeros(7))]
    both[0].grad, both[1].grad = factored, torch.full((7,), 5.0)
    other[0].grad, other[1].grad = matrix, torch.full((7,), 5.0)
    norms = [nn.utils.clip_grad_norm_(p, 0.3, foreach=foreach) for p in (both, other)]
    torch.testing.assert_close(*norms)
    assert both[0].grad.factors is not None
    assert both[0].grad._value.matrix is None
    for a, b in zip(both, other, strict=True):
        torch.testing.assert_close(a.grad + 0, b.grad)


def test_clipping_by_value_clips_as_on_matrices():
    factored, matrix = pair()
    parameter = nn.Parameter(torch.zeros(SHAPE))
    parameter.grad = factored
    nn.utils.clip_grad_value_([parameter], 0.2)
    torch.testing.assert_close(parameter.grad + 0, matrix.clamp(-0.2, 0.2))
    assert parameter.grad.abs().max() <= 0.2


@pytest.mark.parametrize("broken", [float("inf"), float("nan"), None])
def test_unscaling_divides_and_finds_what_is_not_finite(broken):
    left, right = torch.randn(2, 30), torch.randn(2, 20)
    if broken is not None:
        right[1, 3] = broken
    parameter = nn.Parameter(torch.zeros(SHAPE))
    parameter.grad = FactoredGradient(left, right)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    assert parameter.grad.factors is not None
    if broken is None:
        torch.testing.assert_close(parameter.grad + 0, left.T @ right / 8)
    scaler.step(optimizer)
    assert (parameter.detach().abs().sum() > 0) == (broken is None)


def test_a_gradient_is_saved_and_read_as_an_ordinary_tensor():
    factored, matrix = pair()
    file = io.BytesIO()
    torch.save({"gradient": factored}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["gradient"]
    assert type(loaded) is torch.Tensor
    torch.testing.assert_close(loaded, matrix)
    assert factored.tolist()[0] == pytest.approx(matrix.tolist()[0])
    assert repr(factored) == "FactoredGradient(2 pairs, shape=(30, 20), dtype=torch.float32)"
    assert repr(factored.clamp_(0, 1)).startswith("FactoredGradient(written out")


def test_a_gradient_can_be_set_by_its_data():
    factored, matrix = pair()
    factored.data = factored.data.clamp(-0.1, 0.1)
    torch.testing.assert_close(factored + 0, matrix.clamp(-0.1, 0.1))
    other, expected = pair(seed=3)
    factored.data = other
    assert factored.factors is not None
    torch.testing.assert_close(factored + 0, expected)


def test_a_module_with_a_factored_gradient_changes_its_type_and_shares_its_memory():
    module = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    module.weight.grad, matrix = pair()
    module.double()
    assert (module.weight.grad + 0).dtype == torch.float64
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    module.share_memory()
    assert module.weight.grad.is_shared()
    torch.testing.assert_close(module.weight.grad + 0, matrix.double())


def test_the_memory_of_a_gradient_is_that_of_its_matrix():
    for read in (torch.from_dlpack, lambda g: torch.from_numpy(g.numpy())):
        factored, matrix = pair()
        seen = read(factored)
        torch.testing.assert_close(seen, matrix)
        assert seen.data_ptr() == factored.data_ptr()
        seen.zero_()
        assert (factored + 0).abs().sum() == 0


def test_lists_of_gradients_are_done_at_once_but_for_those_in_factors():
    factored, matrix = pair()
    ordinary = [torch.ones(3), torch.full((2,), 2.0)]
    mixed = [ordinary[0], factored, ordinary[1]]
    norms = torch._foreach_norm(mixed, 2.0, torch.float64)
    expected = [t.double().norm() for t in (ordinary[0], matrix, ordinary[1])]
    torch.testing.assert_close(torch.stack(list(norms)), torch.stack(expected))
    assert torch._foreach_mul_(mixed, 3.0) is None or factored.factors is not None
    torch.testing.assert_close(factored + 0, 3 * matrix)
    assert ordinary[1].tolist() == [6.0, 6.0]


def test_rows_are_those_of_the_matrix():
    for num in (1, 3):
        factored, matrix = pair(num)
        out = torch.empty(7, 20)
        factored.factors.rows(5, out)
        torch.testing.assert_close(out, matrix[5:12])
