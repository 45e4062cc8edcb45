import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mip_lightning import LogUniform, Normal, Prior, Uniform, UsageError

bounds = st.tuples(st.floats(1e-3, 10.0, allow_nan=False), st.floats(11.0, 1e3, allow_nan=False))


@given(bounds=bounds, level=st.floats(0, 1), kind=st.sampled_from([Uniform, LogUniform]))
def test_the_unit_value_of_a_quantile_is_its_level(bounds, level, kind):
    prior = kind(*bounds)
    levels = torch.tensor([[level]], dtype=torch.float64)
    torch.testing.assert_close(prior.to_unit(prior.quantile(levels)), levels, atol=1e-9, rtol=0)


@given(bounds=bounds, n=st.integers(2, 20), kind=st.sampled_from([Uniform, LogUniform]))
def test_a_bounded_grid_has_both_end_points_and_stays_inside(bounds, n, kind):
    prior = kind(*bounds)
    grid = prior.grid(n)
    torch.testing.assert_close(grid[0, 0], torch.tensor(bounds[0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(grid[-1, 0], torch.tensor(bounds[1]), rtol=1e-6, atol=0)
    prior.check(grid)  # rounding puts no value outside the support


def test_grids_are_the_quantiles_that_scipy_gives():
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    expected = torch.from_numpy(stats.norm.ppf(levels, loc=2, scale=3)).float()
    torch.testing.assert_close(Normal(2, 3).grid(5)[:, 0], expected, atol=1e-5, rtol=1e-5)
    expected = torch.from_numpy(stats.loguniform.ppf(torch.linspace(0, 1, 4), 0.1, 100)).float()
    torch.testing.assert_close(LogUniform(0.1, 100).grid(4)[:, 0], expected)
    assert Uniform(2, 4).grid(1).item() == 3


def test_a_grid_of_many_dimensions_takes_each_quantile_once_in_each_dimension():
    grid = Uniform(0, 1, dim=3).grid(7)
    assert grid.shape == (7, 3)
    for dimension in grid.T:
        torch.testing.assert_close(dimension.sort().values, torch.linspace(0, 1, 7))
    assert not torch.equal(grid[:, 0], grid[:, 1])
    assert not torch.equal(grid[:, 1], grid[:, 2])
    assert torch.equal(grid, Uniform(0, 1, dim=3).grid(7))


@pytest.mark.parametrize(
    ("prior", "distribution"),
    [
        (Uniform(-1, 3), stats.uniform(-1, 4)),
        (LogUniform(1e-2, 1e2), stats.loguniform(1e-2, 1e2)),
        (Normal(1, 2), stats.norm(1, 2)),
    ],
)
def test_samples_follow_the_distribution(prior: Prior, distribution):
    sample = prior.sample(4000, torch.Generator().manual_seed(0))
    assert sample.shape == (4000, 1)
    assert stats.kstest(sample[:, 0].numpy(), distribution.cdf).pvalue > 1e-3


def test_samples_depend_on_the_generator_alone():
    first, second = (Normal(dim=2).sample(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_gaussian_is_standardized_then_brought_to_the_unit_range_by_the_logistic_function():
    gamma = torch.tensor([[1.0, 3.0]])
    expected = torch.tensor([[0.5, 1 / (1 + math.exp(-1))]])
    torch.testing.assert_close(Normal(mean=1, std=2, dim=2).to_unit(gamma), expected)


def test_a_gamma_is_brought_to_draws_by_dimensions():
    assert Uniform(0, 1).check(0.5).shape == (1, 1)
    assert Uniform(0, 1).check([0.5]).shape == (1, 1)
    assert Uniform(0, 1, dim=2).check([0.5, 0.2]).shape == (1, 2)
    assert Uniform(0, 1, dim=2).check(torch.rand(3, 2)).shape == (3, 2)
    assert Uniform(0, 1).check(torch.tensor([[1]])).dtype == torch.float32


@pytest.mark.parametrize(
    ("gamma", "says"),
    [
        (torch.rand(3, 2), r"shape \(3, 2\).*give shape \(1,\)"),
        (torch.rand(2, 1, 1), "shape"),
        (torch.rand(0, 1), "shape"),
        (torch.tensor([[0.5], [math.nan]]), r"gamma\[1, 0\] is nan.*finite"),
        (torch.tensor([-math.inf]), "-inf.*finite"),
        (1.5, r"gamma\[0, 0\] is 1.5, outside \[0, 1\].*clamp=True"),
    ],
)
def test_a_wrong_gamma_is_refused_with_the_way_out(gamma, says):
    with pytest.raises(UsageError, match=says):
        Uniform(0, 1).check(gamma)


def test_a_gamma_outside_is_clamped_if_asked_for():
    clamped = Uniform(0, 1, clamp=True).check(torch.tensor([[-1.0], [0.4], [2.0]]))
    assert clamped.tolist() == [[0.0], [pytest.approx(0.4)], [1.0]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Uniform(1, 1), "low=1.0, high=1.0"),
        (lambda: Uniform(0, math.inf), "finite"),
        (lambda: LogUniform(0, 1), "low=0"),
        (lambda: LogUniform(2, 1), "low=2"),
        (lambda: Normal(std=0), "std=0"),
        (lambda: Uniform(dim=0), "dim=0"),
        (lambda: Uniform().grid(0), "n=0"),
    ],
)
def test_an_impossible_prior_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()
