"""Priors made of others, over finite values, and uniform in a function of gamma."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from mip_lightning import (
    Categorical,
    ComplementEncoding,
    EndPointOversampling,
    HyperLightningModule,
    HyperModel,
    HypernetworkConfig,
    IdentityEncoding,
    Joint,
    L2Encoding,
    LogOddsUniform,
    LogUniform,
    Normal,
    SquareRootUniform,
    Stratified,
    Uniform,
    UsageError,
    Values,
)
from mip_lightning.hypernetworks.encodings import make_encoding
from mip_lightning.networks import MultilayerPerceptron

JOINT = Joint(
    {
        "weight": LogUniform(1e-3, 1.0),
        "contrast": Categorical(["t1", "t2", "flair"]),
        "latent": Normal(dim=2),
    }
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(level=st.floats(0, 1), kind=st.sampled_from([LogOddsUniform, SquareRootUniform]))
def test_the_unit_value_of_a_quantile_is_its_level(level, kind):
    levels = torch.tensor([[level]], dtype=torch.float64)
    torch.testing.assert_close(kind().to_unit(kind().quantile(levels)), levels, atol=1e-6, rtol=0)


def test_the_odds_of_a_log_odds_uniform_gamma_are_log_uniform():
    gamma = LogOddsUniform(0.01, 0.99).sample(4000, generator())[:, 0].double()
    odds = (gamma / (1 - gamma)).numpy()
    assert stats.kstest(odds, stats.loguniform(0.01 / 0.99, 0.99 / 0.01).cdf).pvalue > 1e-3


def test_the_square_root_of_a_square_root_uniform_gamma_is_uniform():
    root = SquareRootUniform(0, 4).sample(4000, generator())[:, 0].sqrt().numpy()
    assert stats.kstest(root, stats.uniform(0, 2).cdf).pvalue > 1e-3


def test_end_points_are_drawn_with_the_given_probability_and_the_rest_as_before():
    prior = EndPointOversampling(Uniform(-1, 3), probability=0.3)
    gamma = prior.sample(20_000, generator())[:, 0]
    low, high = (gamma == -1).float().mean().item(), (gamma == 3).float().mean().item()
    assert low == pytest.approx(0.15, abs=0.01)
    assert high == pytest.approx(0.15, abs=0.01)
    inner = gamma[(gamma > -1) & (gamma < 3)]
    assert stats.kstest(inner[:4000].numpy(), stats.uniform(-1, 4).cdf).pvalue > 1e-3
    assert torch.equal(prior.grid(5), Uniform(-1, 3).grid(5))


@pytest.mark.parametrize("inside", [Uniform(0, 1, dim=2), Normal(dim=2), JOINT])
def test_stratified_draws_have_one_in_each_part_of_each_dimension(inside):
    gamma = Stratified(inside).sample(32, generator())
    assert gamma.isfinite().all()
    if isinstance(inside, Uniform):
        for dimension in gamma.T:
            assert (dimension * 32).floor().sort().values.tolist() == list(range(32))
        assert not torch.equal(gamma[:, 0].argsort(), gamma[:, 1].argsort())


def test_each_stratified_draw_follows_the_prior():
    first = torch.stack([Stratified(Normal()).sample(4, None)[0, 0] for _ in range(3000)])
    assert stats.kstest(first.numpy(), stats.norm.cdf).pvalue > 1e-3


def test_values_and_categories_are_drawn_equally_often():
    for prior, values in ((Values([5, 1, 2]), [1, 2, 5]), (Categorical(["a", "b"]), [0, 1])):
        found, counts = prior.sample(6000, generator()).unique(return_counts=True)
        assert found.tolist() == values
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_grid_over_finite_values_has_each_once():
    assert Values([5, 1, 2]).grid(11).tolist() == [[1], [2], [5]]
    assert Categorical(["a", "b"]).grid(5).tolist() == [[0], [1]]
    assert Values([5, 1, 2]).to_unit(torch.tensor([[1.0], [2.0], [5.0]])).flatten().tolist() == [
        0,
        0.25,
        1,
    ]


def test_a_joint_prior_is_its_parts_side_by_side():
    assert JOINT.dim == 4
    assert JOINT.names == ("weight", "contrast", "latent_0", "latent_1")
    gamma = JOINT.sample(4000, generator())
    assert stats.kstest(gamma[:, 0].numpy(), stats.loguniform(1e-3, 1).cdf).pvalue > 1e-3
    assert set(gamma[:, 1].tolist()) == {0, 1, 2}
    assert stats.kstest(gamma[:, 3].numpy(), stats.norm.cdf).pvalue > 1e-3
    correlation = torch.corrcoef(gamma.T) - torch.eye(4)
    assert correlation.abs().max() < 0.08
    unit = JOINT.to_unit(gamma)
    torch.testing.assert_close(unit[:, :1], LogUniform(1e-3, 1).to_unit(gamma[:, :1]))


def test_a_joint_grid_takes_the_grid_values_of_each_part():
    grid = JOINT.grid(6)
    assert grid.shape == (6, 4)
    torch.testing.assert_close(grid[:, :1], LogUniform(1e-3, 1).grid(6))
    assert sorted(grid[:, 1].tolist()) == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(grid[:, 2].sort().values, Normal().grid(6)[:, 0])


def test_a_gamma_is_given_by_names():
    gamma = JOINT.check({"latent": [0.5, -1.0], "contrast": "t2", "weight": 0.1})
    torch.testing.assert_close(gamma, torch.tensor([[0.1, 1.0, 0.5, -1.0]]))
    weights = torch.tensor([[0.1], [0.2]])
    several = JOINT.check({"weight": weights, "contrast": "t1", "latent": [0.0, 0.0]})
    torch.testing.assert_close(several[:, :1], weights)
    assert Categorical(["a", "b"]).check("b").tolist() == [[1]]


@pytest.mark.parametrize(
    ("gamma", "says"),
    [
        ({"weight": 0.1}, "give a value for each of weight, contrast, latent"),
        ({"weight": 2.0, "contrast": "t1", "latent": [0.0, 0.0]}, r"weight \(gamma\[0, 0\]\) is 2"),
        ({"weight": 0.1, "contrast": "pd", "latent": [0.0, 0.0]}, "'pd'.*t1, t2, flair"),
        ({"weight": 0.1, "contrast": 1.5, "latent": [0.0, 0.0]}, "contrast.*1.5.*3 categories"),
        ([0.1, 3.0, 0.0, 0.0], "contrast .*3.*t1, t2, flair"),
        ([0.1, 1.0, math.nan, 0.0], r"latent_0 .*finite"),
        ({"weight": torch.rand(2, 1), "contrast": torch.zeros(3, 1), "latent": [0.0, 0.0]}, "2, 3"),
        ("t1", "takes numbers"),
    ],
)
def test_a_wrong_gamma_is_refused_by_its_name(gamma, says):
    with pytest.raises(UsageError, match=says):
        JOINT.check(gamma)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Joint({}), "at least one"),
        (lambda: Joint({"a": Joint({"b": Uniform()})}), "'a' is itself a Joint"),
        (lambda: Categorical(["a"]), "at least 2"),
        (lambda: Categorical(["a", "a"]), "each once"),
        (lambda: Values([1.0, 1.0]), "each once"),
        (lambda: Values([1.0, math.inf]), "finite"),
        (lambda: LogOddsUniform(0.0, 0.5), "low=0"),
        (lambda: SquareRootUniform(-1, 1), "low=-1"),
        (lambda: EndPointOversampling(Uniform(), 1.5), "probability=1.5"),
        (lambda: Stratified(EndPointOversampling(Uniform())), "wraps no other"),
        (lambda: Stratified(Joint({"a": EndPointOversampling(Uniform())})), "wraps no other"),
        (lambda: Values([1, 2]).check(1.5), "outside the values 1, 2"),
    ],
)
def test_an_impossible_prior_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Uniform(0, 2), Uniform(0.0, 2.0)),
        (Normal(1, 2), Normal(1.0, 2.0)),
        (Categorical(["a", "b"]), Categorical(("a", "b"))),
        (Values([1, 2]), Values((2.0, 1.0))),
    ],
)
def test_equal_priors_are_called_the_same(one, other):
    assert one == other
    assert str(one) == str(other)  # by which a checkpoint knows its own
    assert hash(one) == hash(other)


def test_named_hyperparameters_are_logged_by_name_however_they_are_drawn():
    class Task(HyperLightningModule):
        def loss(self, batch, primary):
            return batch.mean()

    task = Task(nn.Linear(2, 2), Stratified(Joint({"a": Uniform(0, 2), "b": Uniform(0, 4)})))
    logged = task.model.prior.means(torch.tensor([[1.0, 2.0], [1.5, 3.0]]))
    assert {name: value.item() for name, value in logged.items()} == {
        "gamma/a": 1.25,
        "gamma/b": 2.5,
    }


def test_categories_are_encoded_by_learned_vectors_of_norm_one():
    encoding = make_encoding(JOINT, L2Encoding)
    gamma = JOINT.sample(10, generator())
    encoded = encoding(gamma)
    weight, contrast, latent = encoded.split([2, 3, 4], dim=1)
    assert encoding.num_features == 9
    torch.testing.assert_close(contrast.norm(dim=1), torch.ones(10))
    torch.testing.assert_close(weight, L2Encoding(LogUniform(1e-3, 1))(gamma[:, :1]))
    torch.testing.assert_close(latent, L2Encoding(Normal(dim=2))(gamma[:, 2:]))
    assert len(contrast.unique(dim=0)) == 3
    encoded.sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in encoding.parameters())


def test_a_joint_without_categories_is_encoded_as_one():
    prior = Stratified(Joint({"a": Uniform(0, 2), "b": Uniform(0, 4)}))
    encoding = make_encoding(prior, ComplementEncoding)
    encoded = encoding(torch.tensor([[1.0, 1.0]]))
    assert encoded.tolist() == [[0.5, 0.25, 0.5, 0.75]]


@pytest.mark.parametrize("formulation", ["default", "mip"])
@pytest.mark.parametrize("encoding", [None, IdentityEncoding, ComplementEncoding])
def test_a_model_takes_named_hyperparameters(formulation, encoding):
    config = HypernetworkConfig([4, 8], encoding=encoding)
    model = HyperModel(MultilayerPerceptron(4), JOINT, formulation, config)
    x, gamma = torch.rand(3, 4), {"weight": 0.1, "contrast": "flair", "latent": [0.0, 1.0]}
    torch.testing.assert_close(model.materialize(gamma)(x), model(x, gamma))
    other = {**gamma, "contrast": "t1"}
    assert not torch.equal(model(x, gamma), model(x, other))
