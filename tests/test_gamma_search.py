import math

import pytest
import torch
import yaml

from mip_lightning import Joint, Uniform, UsageError
from mip_lightning.gamma_search import best_of
from mip_lightning.requested_gamma import RequestedGamma

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("peak", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_search_comes_as_close_to_the_best_gamma_as_it_was_told(peak, sign):
    found = best_of(lambda gamma: -sign * (gamma - peak) ** 2, GRID, sign > 0, 0.01)
    assert type(found.gamma) is float  # YAML knows no other
    assert found.gamma == pytest.approx(peak, abs=0.011)
    assert found.value == pytest.approx(-sign * (found.gamma - peak) ** 2)


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
    assert 0.59 < found.gamma < 0.65


def test_gamma_is_asked_for_by_value_by_list_or_by_file(tmp_path):
    prior = Uniform(0, 1)
    assert RequestedGamma(prior, 0.3).of_sample("any").tolist() == [[pytest.approx(0.3)]]
    assert RequestedGamma(prior, [0.25, 0.5]).everywhere.tolist() == [[0.25], [0.5]]
    assert RequestedGamma(Uniform(0, 1, dim=2), [0.25, 0.5]).one.tolist() == [[0.25, 0.5]]
    pair = Joint({"a": Uniform(0, 1), "b": Uniform(0, 1)})
    assert RequestedGamma(pair, {"a": 0.25, "b": 0.5}).one.tolist() == [[0.25, 0.5]]
    path = tmp_path / "selected.yaml"
    path.write_text(yaml.safe_dump({"by": "all", "gamma": 0.5}))
    assert RequestedGamma(prior, str(path)).one.tolist() == [[0.5]]
    path.write_text(yaml.safe_dump({"by": "label", "gamma": {"a": 0.5, "b": 0.25, "c": 0.5}}))
    assert RequestedGamma(prior, str(path)).everywhere.tolist() == [[0.5], [0.25]]
    path.write_text(yaml.safe_dump({"by": "subject", "gamma": {"a": 0.5, "b": 0.25}}))
    assert RequestedGamma(prior, str(path)).of_sample("b").tolist() == [[0.25]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("by: subject\ngamma: {a: 0.5}", "select-gamma --by all"),
        ("by: label\ngamma: {a: 0.5, b: 0.25}", "holds 2 values: give one"),
        ("by: all\ngamma: 2.0", "outside"),
        ("by: all\ngamma: {a: 0.5}", "no file that select-gamma wrote"),
        ("gamma: 0.5", "no file that select-gamma wrote"),
        ("[0.5", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_by_name(content, says, tmp_path):
    path = tmp_path / "selected.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=says):
        _ = RequestedGamma(Uniform(0, 1), str(path)).one


def test_a_subject_for_which_no_gamma_was_selected_is_named(tmp_path):
    path = tmp_path / "selected.yaml"
    path.write_text("by: subject\ngamma: {a_to_b: 0.5}")
    with pytest.raises(UsageError, match=r"no gamma for 'c_to_d' \(but for 'a_to_b'\)"):
        RequestedGamma(Uniform(0, 1), str(path)).of_sample("c_to_d")
    assert torch.equal(RequestedGamma(Uniform(0, 1), [0.5]).of_sample("x"), torch.tensor([[0.5]]))
