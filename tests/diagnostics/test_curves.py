import torch

from mip_lightning import Uniform
from mip_lightning.core import Curve
from mip_lightning.diagnostics.curves import label_rows

NAN = float("nan")


def test_a_label_whose_metric_is_nan_at_every_gamma_has_no_best():
    curve = Curve(
        torch.tensor([0.1, 0.2]), True, {1: torch.tensor([0.1, 0.2]), 2: torch.tensor([NAN, NAN])}
    )
    found = label_rows({}, ["gamma"], Uniform(0, 1).grid(2), "dice", curve)
    assert [(row["label"], row["best"]) for row in found] == [(1, 0), (1, 1), (2, 0), (2, 0)]
