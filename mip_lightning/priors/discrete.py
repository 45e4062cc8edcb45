"""Priors over finitely many values: named categories, or a list of numbers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.priors.base import Gamma, Prior, midpoints


class _Finite(Prior):
    """What priors over ``size`` equally likely values share; one dimension."""

    dim = 1

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of values."""

    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        """Midpoints of ``n`` equally probable intervals; each value once if n is their number."""
        return midpoints(n)

    def grid(self, n: int) -> Float[Tensor, "points D"]:
        """Each value once, or ``n`` of them where there are more."""
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
    def size(self) -> int:
        """Number of categories."""
        return len(self.categories)

    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """The index of the category in whose part a level falls."""
        return self._index(levels)

    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """The middle of the category's part of [0, 1]."""
        return (gamma + 0.5) / self.size

    def as_draws(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        """As every prior's, and the name of a category in place of its index."""
        if not isinstance(gamma, str):
            return super().as_draws(gamma)
        if gamma not in self.categories:
            raise UsageError(
                f"gamma={gamma!r} is no category: choose one of {', '.join(self.categories)}"
            )
        return super().as_draws(float(list(self.categories).index(gamma)))

    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        """Whether each value is an index."""
        return (gamma >= 0) & (gamma < self.size) & (gamma == gamma.round())

    def support(self, dimension: int) -> str:
        """The categories."""
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
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.values)

    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """The number in whose part a level falls, in ascending order."""
        return levels.new_tensor(self.values)[self._index(levels).long()]

    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """``(gamma - min) / (max - min)``."""
        return (gamma - self.values[0]) / (self.values[-1] - self.values[0])

    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        """Whether each value is one of the numbers, to the precision of its type."""
        return torch.isclose(gamma.unsqueeze(-1), gamma.new_tensor(self.values)).any(dim=-1)

    def support(self, dimension: int) -> str:
        """The numbers."""
        return f"the values {', '.join(f'{value:g}' for value in self.values)}: give one of them"
