"""Norms of many numbers."""

import pytest
import torch

from mip_lightning.utilities.norms import norm


@pytest.mark.parametrize("size", [(0,), (1,), (), (3, 5), (70_000,), (4_000, 2_500)])
def test_the_norm_is_that_of_float64(size):
    values = torch.randn(size)
    torch.testing.assert_close(norm(values).double(), values.double().norm(), rtol=2e-6, atol=0.0)


def test_the_norm_of_half_precision_does_not_run_over():
    values = torch.full((100,), 60_000.0, dtype=torch.float16)
    assert norm(values).item() == pytest.approx(10 * values[0].item())
    assert norm(values.double()).dtype == torch.float64


def test_a_norm_of_what_is_not_finite_is_not():
    assert norm(torch.tensor([1.0, torch.inf])).isinf()
    assert norm(torch.tensor([1.0, torch.nan])).isnan()
