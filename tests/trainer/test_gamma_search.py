import math

import pytest
import torch
import yaml
from torch import nn
from torchmetrics import MeanMetric

from mip_lightning import (
    Categorical,
    Dirichlet,
    HyperLightningModule,
    Joint,
    LogUniform,
    Normal,
    StepOutput,
    Uniform,
    UsageError,
    Values,
)
from mip_lightning.core.requested_gamma import RequestedGamma
from mip_lightning.trainer._optimum import best_of, best_point, starting_points
from mip_lightning.trainer.gamma_search import GammaSearch, write_selected

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("peak", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_search_comes_as_close_to_the_best_gamma_as_it_was_told(peak, sign):
    found = best_of(lambda gamma: -sign * (gamma - peak) ** 2, GRID, sign > 0, 0.01)
    assert type(found.argument) is float  # YAML knows no other
    assert found.argument == pytest.approx(peak, abs=0.011)
    assert found.value == pytest.approx(-sign * (found.argument - peak) ** 2)


def test_the_search_is_never_worse_than_its_grid_and_evaluates_nothing_twice():
    calls = []

    def rough(gamma: float) -> float:
        calls.append(gamma)
        return math.sin(40 * gamma)

    found = best_of(rough, GRID, True, 0.01)
    assert found.value == max(math.sin(40 * gamma) for gamma in calls)
    assert len(calls) == len(set(calls))


def test_a_value_that_is_no_number_is_never_the_best():
    found = best_of(lambda gamma: math.nan if gamma < 0.6 else -gamma, GRID, True, 0.01)
    assert 0.59 < found.argument < 0.65


@pytest.mark.filterwarnings("error")
def test_a_search_in_a_part_of_the_range_warns_of_nothing():
    for limit in (0.3, 0.74, 0.76):
        found = best_of(lambda g, limit=limit: g if g <= limit else math.nan, GRID, True, 0.001)
        assert found.argument == pytest.approx(limit, abs=0.01)
    nowhere = best_of(lambda gamma: math.nan, GRID, True, 0.01)
    assert (nowhere.argument, math.isnan(nowhere.value)) == (0.0, True)


class Fitting(HyperLightningModule):
    """Each sample is best at a gamma of its own, which it is told."""

    def loss(self, batch, primary):
        distance = (primary.gamma[0] - batch["best"]).abs()
        self.log("part", distance.mean())  # a search is no step of a trainer
        return StepOutput(distance.mean(), distance.detach(), batch["best"])

    def configure_metrics(self):
        return {"distance": MeanAbsoluteDistance(nan_strategy="disable")}

    def sample_names(self, batch):
        return batch["name"]


class MeanAbsoluteDistance(MeanMetric):
    higher_is_better = False

    def update(self, prediction, target):
        super().update(prediction)


def test_each_subject_is_searched_by_itself_once_the_grid_is_known(monkeypatch):
    best = torch.linspace(0.03, 0.93, 10)
    batches = [
        {"best": best[i : i + 4], "name": [str(n) for n in range(i, min(i + 4, 10))]}
        for i in (0, 4, 8)
    ]
    module = Fitting(nn.Linear(1, 1), Uniform(0, 1)).eval()
    samples = []
    step_output = module.step_output

    def counted(batch, primary):
        samples.append(len(batch["best"]))
        return step_output(batch, primary)

    monkeypatch.setattr(module, "step_output", counted)
    search = GammaSearch(module, batches, "distance", len(GRID), 0.01)
    with torch.no_grad():
        selected = search.select("subject")
    assert {name: found.gamma[0] for name, found in selected.items()} == pytest.approx(
        {str(n): float(value) for n, value in enumerate(best)}, abs=0.011
    )
    assert sum(samples) < 10 * len(GRID) + 10 * 15  # not 10 * 10 * 15


@pytest.mark.parametrize(
    ("prior", "best", "close"),
    [
        (LogUniform(1e-8, 1e-2), 3e-7, 1.2),
        (Uniform(1 / 3, 1), 0.0, 1.0),
        (Uniform(0, 2 / 3), 1.0, 1.0),
        (Normal(0, 1), 0.4, 1.1),
        (Values([0.1, 0.5, 1.0]), 0.4, 1.0),
        (Categorical(["a", "b", "c"]), 1.3, 1.0),
    ],
)
@pytest.mark.parametrize("metric", ["distance", "loss"])
def test_what_is_selected_is_of_the_prior_and_close_to_the_best(
    prior, best, close, metric, tmp_path
):
    module = Fitting(nn.Linear(1, 1), prior).eval()
    batches = [{"best": torch.full((4,), best)}]
    with torch.no_grad():
        selected = GammaSearch(module, batches, metric, 5, 0.01).select("all")
    write_selected(tmp_path / "gamma.yaml", selected, "all", metric, None)
    gamma = RequestedGamma(prior, tmp_path / "gamma.yaml").single
    nearest = min(
        prior.quantile(torch.linspace(0.001, 0.999, 2001).unsqueeze(1)).flatten().tolist(),
        key=lambda value: abs(value - best),
    )
    assert gamma.item() == pytest.approx(nearest, rel=max(close - 1, 1e-2))


def test_a_search_without_batches_or_numbers_selects_nothing():
    module = Fitting(nn.Linear(1, 1), Uniform(0, 1)).eval()
    with pytest.raises(UsageError, match="no validation batches"):
        GammaSearch(module, [], "loss", 5, 0.01)
    batches = [{"best": torch.full((2,), math.nan), "name": ["a", "b"]}]
    for metric, by in (("loss", "all"), ("distance", "subject")):
        with torch.no_grad(), pytest.raises(UsageError, match="not a number at any gamma"):
            GammaSearch(module, batches, metric, 5, 0.01).select(by)
    with torch.no_grad(), pytest.raises(UsageError, match="by='subject'"):
        GammaSearch(module, batches, "loss", 5, 0.01).select("subject")


def test_gamma_is_asked_for_by_value_by_list_or_by_file(tmp_path):
    prior = Uniform(0, 1)
    assert RequestedGamma(prior, 0.3).of_sample("any").tolist() == [[pytest.approx(0.3)]]
    assert RequestedGamma(prior, [0.25, 0.5]).shared.tolist() == [[0.25], [0.5]]
    assert RequestedGamma(Uniform(0, 1, dim=2), [0.25, 0.5]).single.tolist() == [[0.25, 0.5]]
    pair = Joint({"a": Uniform(0, 1), "b": Uniform(0, 1)})
    assert RequestedGamma(pair, {"a": 0.25, "b": 0.5}).single.tolist() == [[0.25, 0.5]]
    path = tmp_path / "selected.yaml"
    path.write_text(yaml.safe_dump({"by": "all", "gamma": 0.5}))
    assert RequestedGamma(prior, str(path)).single.tolist() == [[0.5]]
    path.write_text(yaml.safe_dump({"by": "label", "gamma": {"a": 0.5, "b": 0.25, "c": 0.5}}))
    assert RequestedGamma(prior, str(path)).shared.tolist() == [[0.5], [0.25]]
    path.write_text(yaml.safe_dump({"by": "subject", "gamma": {"a": 0.5, "b": 0.25}}))
    assert RequestedGamma(prior, str(path)).of_sample("b").tolist() == [[0.25]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("by: subject\ngamma: {a: 0.5}", "select-gamma --by all"),
        ("by: label\ngamma: {a: 0.5, b: 0.25}", "holds 2 values: give one"),
        ("by: label\ngamma: {}", "not a file that select-gamma wrote"),
        ("by: all\ngamma: 2.0", "outside"),
        ("by: all\ngamma: {a: 0.5}", "not a file that select-gamma wrote"),
        ("gamma: 0.5", "not a file that select-gamma wrote"),
        ("[0.5", "is not YAML: "),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_by_name(content, says, tmp_path):
    path = tmp_path / "selected.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=says):
        _ = RequestedGamma(Uniform(0, 1), str(path)).single


def test_a_subject_for_which_no_gamma_was_selected_is_named(tmp_path):
    path = tmp_path / "selected.yaml"
    path.write_text("by: subject\ngamma: {a_to_b: 0.5}")
    with pytest.raises(UsageError, match=r"no gamma for 'c_to_d' \(but for 'a_to_b'\)"):
        RequestedGamma(Uniform(0, 1), str(path)).of_sample("c_to_d")
    assert torch.equal(RequestedGamma(Uniform(0, 1), [0.5]).of_sample("x"), torch.tensor([[0.5]]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("peak", [(0.3, 0.8), (0.0, 1.0), (0.97, 0.5), (0.1, 0.6, 0.9)])
def test_the_best_point_is_found_inside_and_at_the_ends(peak, sign):
    calls = []

    def function(point):
        calls.append(point)
        return -sign * sum((x - p) ** 2 for x, p in zip(point, peak, strict=True))

    starts = starting_points(len(peak), 11 * len(peak))
    found = best_point(function, starts, sign > 0, 0.01)
    assert found.point == pytest.approx(peak, abs=0.02)
    assert found.value == max(map(function, calls[:]), key=lambda v: sign * v)
    assert len(calls) < 2 * (len(starts) + 60 * len(peak))
    assert all(0 <= x <= 1 for point in calls for x in point)


def test_where_the_function_is_no_number_there_is_no_best_point():
    starts = starting_points(2, 10)
    partly = best_point(lambda p: math.nan if p[0] > 0.5 else p[0] + p[1], starts, True, 0.01)
    assert partly.point == pytest.approx((0.5, 1.0), abs=0.05)
    assert math.isnan(best_point(lambda p: math.nan, starts, True, 0.01).value)


class FittingAll(Fitting):
    """Each sample is best at a gamma of several dimensions."""

    def loss(self, batch, primary):
        distance = (primary.gamma[0] - batch["best"]).norm(dim=1)
        return StepOutput(distance.mean(), distance.detach(), batch["best"])


SEVERAL = {
    "joint": (Joint({"a": LogUniform(1e-3, 1), "b": Uniform(0, 2)}), [0.05, 1.7]),
    "without bounds": (Joint({"a": Normal(), "b": Normal(2, 3)}), [-0.4, 3.5]),
    "with a category": (Joint({"a": Uniform(), "b": Categorical(["x", "y", "z"])}), [0.3, 2.0]),
    "weights": (Dirichlet(3), [0.2, 0.7, 0.1]),
    "a corner": (Dirichlet(["dice", "smooth"]), [1.0, 0.0]),
}


@pytest.mark.parametrize("by", ["all", "subject"])
@pytest.mark.parametrize("name", SEVERAL)
def test_gamma_of_several_dimensions_is_selected(name, by, tmp_path):
    prior, best = SEVERAL[name]
    module = FittingAll(nn.Linear(1, 1), prior).eval()
    batches = [{"best": torch.tensor([best, best]), "name": ["first", "second"]}]
    seen = []
    with torch.no_grad():
        search = GammaSearch(
            module, batches, "distance", 11, 0.002, allowed=lambda g: not seen.append(g)
        )
        selected = search.select(by)
    assert torch.tensor(seen).isfinite().all()
    path = tmp_path / "gamma.yaml"
    write_selected(path, selected, by, "distance", None)
    requested = RequestedGamma(prior, path)
    found = requested.of_sample("second")
    torch.testing.assert_close(found, torch.tensor([best]), rtol=0, atol=0.03)
    assert all(gamma.value < 0.03 for gamma in selected.values())
