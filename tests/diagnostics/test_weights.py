import numpy as np
import pytest
import torch
from torch import nn

from mip_lightning import HyperModel, Joint, Normal, Uniform
from mip_lightning.diagnostics.weights import (
    along_axis,
    proportionality,
    weight_statistics,
)
from mip_lightning.networks import LeNet


def test_the_line_of_std_against_gamma_is_that_of_numpy():
    x = torch.linspace(0, 1, 11)
    y = 0.3 + 0.5 * x + 0.1 * torch.rand(11)
    slope, _ = np.polyfit(x.double(), y.double(), 1)
    r = np.corrcoef(x.double(), y.double())[0, 1]
    fit = proportionality(x, y)
    assert fit.slope == pytest.approx(slope / y.mean().item(), rel=1e-5)
    assert fit.r2 == pytest.approx(r**2, rel=1e-5)


def test_a_constant_std_has_no_slope():
    assert proportionality(torch.linspace(0, 1, 5), torch.full((5,), 0.2)) == (0.0, 0.0)


def test_the_default_formulation_is_a_line_through_zero_and_mip_is_flat():
    grid = Uniform(0, 1).grid(11)
    lines = {}
    for formulation in ("default", "mip"):
        torch.manual_seed(0)
        stds = weight_statistics(HyperModel(LeNet(), Uniform(0, 1), formulation), grid)
        lines[formulation] = proportionality(grid[:, 0], stds["all"].std)
    assert lines["default"].r2 > 0.999999
    assert lines["default"].slope == pytest.approx(2, abs=1e-4)  # 1 / mean(gamma)
    assert abs(lines["mip"].slope) < 0.1


def test_statistics_are_those_of_all_elements_together_and_of_each_tensor():
    model = HyperModel(nn.Linear(3, 2), Normal(dim=2))
    grid = model.prior.grid(4)
    found = weight_statistics(model, grid)
    assert list(found) == ["all", "weight", "bias"]
    for i, gamma in enumerate(grid):
        theta = {name: t.detach().numpy().ravel() for name, t in model.at(gamma).theta.items()}
        theta["all"] = np.concatenate(list(theta.values()))
        for name, values in theta.items():
            assert found[name].std[i] == pytest.approx(values.std(), rel=1e-5)
            assert found[name].mean[i] == pytest.approx(values.mean(), rel=1e-4, abs=1e-7)
            assert found[name].norm[i] == pytest.approx(np.linalg.norm(values), rel=1e-5)


def test_a_line_along_one_dimension_keeps_the_others_at_their_medians():
    line = along_axis(Joint({"a": Uniform(2, 4), "b": Normal(1, 3)}), 0, 3)
    torch.testing.assert_close(line, torch.tensor([[2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]))
