"""The Dirichlet prior, against scipy's, and its encoding."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from mip_lightning import Dirichlet, HyperModel, Joint, Stratified, Uniform, UsageError
from mip_lightning.hypernetworks import JointEncoding, SimplexEncoding


@pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("stratified", [False, True])
def test_each_weight_is_distributed_as_it_must_be(count, concentration, stratified):
    """The margins of a symmetric Dirichlet are Beta(a, (n - 1) a)."""
    prior = Dirichlet(count, concentration)
    if stratified:
        prior = Stratified(prior)
    found = prior.sample(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4000))
    margin = stats.beta(concentration, (count - 1) * concentration)
    for weight in found.numpy().T:
        assert stats.kstest(weight, margin.cdf).pvalue > 1e-3
    covariance = np.cov(found.numpy().T)
    exact = stats.dirichlet([concentration] * count).cov()
    assert np.abs(covariance - exact).max() < 0.1 * exact.max()


def test_strata_hold_one_draw_each():
    found = Stratified(Dirichlet(2)).sample(8, torch.Generator().manual_seed(0))
    assert sorted((found[:, 0] * 8).floor().tolist()) == list(range(8))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_levels_come_back(count):
    prior, levels = Dirichlet(count, 0.7), torch.rand(20, count) * 0.98 + 0.01
    found = prior.to_unit(prior.quantile(levels))
    torch.testing.assert_close(found[:, :-1], levels[:, :-1], rtol=1e-3, atol=1e-3)
    corners = torch.eye(count)
    torch.testing.assert_close(prior.quantile(prior.to_unit(corners)), corners)


def test_two_weights_are_one_and_what_is_left():
    prior = Dirichlet(["dice", "boundary"])
    expected = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    torch.testing.assert_close(prior.grid(3), expected)
    assert prior.names == ("dice", "boundary")
    torch.testing.assert_close(
        prior.check({"boundary": 0.25, "dice": 0.75}), torch.tensor([[0.75, 0.25]])
    )
    means = prior.means(torch.tensor([[0.2, 0.8], [0.4, 0.6]]))
    assert means == {
        "gamma_dice": pytest.approx(0.3),
        "gamma_boundary": pytest.approx(0.7),
    }


@pytest.mark.parametrize(
    ("gamma", "says"),
    [
        ([0.5, 0.6], r"dice \(gamma\[0, 0\]\) is 0.5, outside the simplex: give 2 .* sum to 1"),
        ([1.5, -0.5], "outside the simplex"),
        ({"dice": 1.0}, "gamma names dice: give each of dice, boundary"),
        ([0.5, 0.2, 0.3], r"has 2 dimension"),
    ],
)
def test_what_is_no_weights_is_refused(gamma, says):
    with pytest.raises(UsageError, match=says):
        Dirichlet(["dice", "boundary"]).check(gamma)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": 1}, "weights=1: give 2 or more"),
        ({"weights": ["a", "a"]}, "each name once"),
        ({"weights": 2, "concentration": 0.0}, "concentration=0.0: give a number above 0"),
    ],
)
def test_what_is_no_prior_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Dirichlet(**options)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_encoding_has_norm_one_and_takes_all_weights_alike(stratified):
    prior = Stratified(Dirichlet(3)) if stratified else Dirichlet(3)
    encoding = HyperModel(nn.Linear(2, 2), prior).hypernetwork.encoding
    assert isinstance(encoding, SimplexEncoding)
    gamma = prior.sample(50)
    torch.testing.assert_close(encoding(gamma).norm(dim=1), torch.ones(50))
    torch.testing.assert_close(encoding(gamma[:, [2, 0, 1]]), encoding(gamma)[:, [2, 0, 1]])


def test_weights_go_together_with_other_hyperparameters():
    prior = Joint({"weights": Dirichlet(["dice", "boundary"]), "noise": Uniform(0, 1)})
    model = HyperModel(nn.Linear(2, 2), prior)
    assert isinstance(model.hypernetwork.encoding, JointEncoding)
    encoded = model.hypernetwork.encoding(prior.sample(20))
    torch.testing.assert_close(encoded.norm(dim=1), torch.full((20,), 2**0.5))
    assert model(torch.rand(3, 2), {"weights": [0.3, 0.7], "noise": 0.1}).shape == (3, 2)
    with pytest.raises(UsageError, match="outside the simplex"):
        model(torch.rand(3, 2), {"weights": [0.3, 0.3], "noise": 0.1})
