"""Metrics that know more than one number: of each label, or whether a prediction was NaN."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from mip_lightning.utilities.finite import has_nan


class LabelledMetric(Metric):
    """A metric that is known for each label too, as the Dice of each structure."""

    @abstractmethod
    def compute_by_label(self) -> Mapping[int, Float[Tensor, ""]]:
        """The metric of each label that was seen, over what ``compute`` is computed of.

        Called where the states are those of all ranks.
        """


class SeenNaN(Metric):
    """Whether a prediction was NaN: an accuracy is a number for such a one too."""

    full_state_update = False
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, is_nan: Bool[Tensor, ""]) -> None:
        self.count += is_nan

    @override
    def compute(self) -> Bool[Tensor, ""]:
        return self.count > 0


class NaNAware(Metric):
    """A metric that is NaN once a prediction was.

    Args:
        metric: The metric.
    """

    full_state_update = False

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self.nans = SeenNaN()

    @override
    def update(self, prediction: Tensor, target: Any) -> None:
        self.nans.update(has_nan(prediction))
        self.metric.update(prediction, target)

    @override
    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value.float().masked_fill(self.nans.compute(), torch.nan)

    @override
    def reset(self) -> None:
        super().reset()
        self.metric.reset()
        self.nans.reset()
