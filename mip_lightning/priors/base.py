"""What every prior p(gamma) does: draw, sweep, map to [0, 1], check, name its dimensions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.utilities.precision import default_dtype

GRID_SEED = 0
"""Seed of the fixed permutations that spread a grid over more than one dimension."""

Gamma: TypeAlias = (
    Tensor | float | str | Sequence[float] | Sequence[Sequence[float]] | Mapping[str, "Gamma"]
)
"""A gamma as a user gives it: a number where D = 1, ``(D,)`` for one draw, ``(K, D)`` for K; the
name of a category; or, of a ``Joint`` prior, a value for each name."""


class Prior(ABC):
    """Distribution of a hypernetwork input gamma of ``dim`` independent dimensions."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of dimensions D of gamma."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each dimension, for logs, figures and errors."""
        return ("gamma",) if self.dim == 1 else tuple(f"gamma_{d}" for d in range(self.dim))

    @property
    def parts(self) -> "tuple[Prior, ...]":
        """The independent priors that make up this one, in the order of the dimensions."""
        return (self,)

    @property
    def base_prior(self) -> "Prior":
        """The prior whose quantiles these are, without what changes only how it is drawn from."""
        return self

    @abstractmethod
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """Map levels in [0, 1] to gamma, each dimension by itself (the inverse CDF)."""

    @abstractmethod
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """Map gamma to [0, 1], each dimension by itself, as the input encoding needs it.

        Source: paper, Section 4, "Input Encoding".
        """

    @abstractmethod
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        """Levels in [0, 1] of the ``n`` grid values, in ascending order."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw ``n`` values of gamma on the CPU."""
        return self.quantile(torch.rand(n, self.dim, generator=generator, dtype=default_dtype()))

    def grid(self, n: int) -> Float[Tensor, "points D"]:
        """The values of gamma over which evaluation sweeps: ``n``, or fewer where there are fewer.

        Each dimension takes the same ``n`` quantiles once. The first dimension is in ascending
        order; the others are in fixed random orders (a Latin hypercube), so that ``n`` points
        cover more than the diagonal.

        Raises:
            UsageError: If ``n`` is less than 1.
        """
        if n < 1:
            raise UsageError(f"n={n}: a grid over gamma needs at least 1 value")
        generator = torch.Generator().manual_seed(GRID_SEED)
        return self.grid_in_orders(
            [torch.arange(n)]
            + [torch.randperm(n, generator=generator) for _ in range(self.dim - 1)]
        )

    def grid_in_orders(self, orders: Sequence[Tensor]) -> Float[Tensor, "n D"]:
        """The grid's quantiles, each dimension in an order of its own.

        Args:
            orders: For each dimension, a permutation of the ``n`` grid levels.
        """
        levels = self.grid_levels(len(orders[0]))
        return self.quantile(torch.stack([levels[order] for order in orders], dim=1))

    def check(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        """Bring a gamma that a user gives to shape ``(K, D)``, or say what is wrong with it.

        Args:
            gamma: One value (a number where D = 1, or shape ``(D,)``), or K values of shape
                ``(K, D)``.

        Returns:
            A floating-point tensor of shape ``(K, D)`` on the device of ``gamma``.

        Raises:
            UsageError: If the shape does not fit or a value is NaN, infinite or outside the
                support.
        """
        return self.check_values(self.as_draws(gamma))

    def as_draws(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        """The part of ``check`` that needs shapes only, and so waits for no device."""
        if isinstance(gamma, (str, Mapping)):
            raise UsageError(f"gamma={gamma!r}: {self} takes numbers")
        dtype = None if hasattr(gamma, "dtype") else default_dtype()
        values = torch.as_tensor(gamma, dtype=dtype)
        if not values.is_floating_point():
            values = values.to(default_dtype())
        draws = values.reshape(1, -1) if values.ndim < 2 else values
        if draws.ndim != 2 or draws.shape[1] != self.dim or draws.shape[0] == 0:
            raise UsageError(
                f"gamma has shape {tuple(values.shape)}, but {self} has {self.dim} dimension(s):"
                f" give shape ({self.dim},) for one draw or (K, {self.dim}) for K draws"
            )
        return draws

    def check_values(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """The part of ``check`` that looks at values."""
        if not bool(gamma.isfinite().all()):
            k, d = (~gamma.isfinite()).nonzero()[0].tolist()
            raise UsageError(
                f"{self._place(k, d)} is {gamma[k, d].item()}: every value must be finite"
            )
        gamma = self.clamped(gamma)
        inside = self.contains(gamma)
        if not bool(inside.all()):
            k, d = (~inside).nonzero()[0].tolist()
            raise UsageError(
                f"{self._place(k, d)} is {gamma[k, d].item():g}, outside {self.support(d)}"
            )
        return gamma

    def means(self, gamma: Float[Tensor, "K D"]) -> dict[str, Tensor]:
        """The mean of gamma over draws and dimensions, by the name under which it is logged."""
        return {"gamma": gamma.mean()}

    def clamped(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """Gamma brought to the support, by a prior that is asked to."""
        return gamma

    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        """Whether each value lies in the support; an unbounded prior takes all."""
        return torch.ones_like(gamma, dtype=torch.bool)

    def support(self, dimension: int) -> str:
        """The values that a dimension takes, and the way out for another one, in words."""
        return "the support"

    def _place(self, draw: int, dimension: int) -> str:
        place, name = f"gamma[{draw}, {dimension}]", self.names[dimension]
        return place if name.startswith("gamma") else f"{name} ({place})"


def evenly_spaced(n: int) -> Float[Tensor, " n"]:
    """Levels with both end points; the middle where n is 1."""
    return torch.linspace(0.0, 1.0, n, dtype=default_dtype()) if n > 1 else midpoints(n)


def midpoints(n: int) -> Float[Tensor, " n"]:
    """The midpoints of ``n`` equally probable parts."""
    return (torch.arange(n, dtype=default_dtype()) + 0.5) / n


def format_gamma(gamma: Float[Tensor, " D"], between: str = "_") -> str:
    """A gamma as names of files and titles tell it: ``0.3``, or ``0.3_0.5``.

    Args:
        gamma: One draw.
        between: What stands between its dimensions.
    """
    return between.join(f"{value:.6g}" for value in gamma.tolist())


def sample_of_batch(prior: Prior, num_draws: int, place: Sequence[int]) -> Float[Tensor, "K D"]:
    """Sample gamma for one batch, by its place in the stream of gamma alone.

    Args:
        prior: The prior.
        num_draws: K.
        place: Whole numbers that tell the batch from all others: seed, epoch, index, rank.
    """
    (seed,) = np.random.SeedSequence(place).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(seed))
    return prior.sample(num_draws, generator)
