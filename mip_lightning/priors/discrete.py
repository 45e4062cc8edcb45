"""Priors over finitely many values: named categories, or a list of numbers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.priors.base import Gamma, Prior, midpoints


class _Finite(Prior):
    """What priors over ``size`` equally likely values share; one dimension."""

    dim = 1

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of values."""

    @override
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        return midpoints(n)

    @override
    def grid(self, n: int) -> Float[Tensor, "points D"]:
        return super().grid(min(n, self.size))

    def _index(self, levels: Float[Tensor, "n D"]) -> Tensor:
        return (levels * self.size).floor().clamp(max=self.size - 1)


@dataclass(frozen=True)
class Categorical(_Finite):
    """One of several named categories, equally likely; gamma is the category's index.

    A number cannot tell categories apart by its size, so every formulation encodes them by a
    learned embedding (``CategoryEncoding``).

    Args:
        categories: The names, in the order of their indices.

    Raises:
        UsageError: If there are fewer than 2 names, or one is there twice.
    """

    categories: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        if len(self.categories) < 2 or len(set(self.categories)) < len(self.categories):
            raise UsageError(
                f"categories={list(self.categories)}: give at least 2 names, each once"
            )

    @property
    @override
    def size(self) -> int:
        return len(self.categories)

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return self._index(levels)

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return (gamma + 0.5) / self.size

    @override
    def as_draws(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        if not isinstance(gamma, str):
            return super().as_draws(gamma)
        if gamma not in self.categories:
            raise UsageError(
                f"gamma={gamma!r} is not a category: choose one of {', '.join(self.categories)}"
            )
        return super().as_draws(float(list(self.categories).index(gamma)))

    @override
    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        return (gamma >= 0) & (gamma < self.size) & (gamma == gamma.round())

    @override
    def support(self, dimension: int) -> str:
        return f"the {self.size} categories: give the index or name of one of" + (
            f" {', '.join(self.categories)}"
        )


@dataclass(frozen=True)
class Values(_Finite):
    """One of a fixed list of numbers, equally likely; mapped to [0, 1] by min-max scaling.

    Args:
        values: The numbers.

    Raises:
        UsageError: If there are fewer than 2, one is there twice, or one is not finite.
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        ordered = torch.tensor(self.values, dtype=torch.float64).sort().values
        if (
            len(ordered) < 2
            or not bool(ordered.isfinite().all())
            or bool((ordered.diff() == 0).any())
        ):
            raise UsageError(
                f"values={list(self.values)}: give at least 2 finite numbers, each once"
            )
        object.__setattr__(self, "values", tuple(ordered.tolist()))

    @property
    @override
    def size(self) -> int:
        return len(self.values)

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return levels.new_tensor(self.values)[self._index(levels).long()]

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return (gamma - self.values[0]) / (self.values[-1] - self.values[0])

    @override
    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        return torch.isclose(gamma.unsqueeze(-1), gamma.new_tensor(self.values)).any(dim=-1)

    @override
    def support(self, dimension: int) -> str:
        return f"the values {', '.join(f'{value:g}' for value in self.values)}: give one of them"
