"""Priors p(gamma): where hypernetwork inputs come from, and which range they span.

A prior knows its support. It draws gamma for training, gives the grid over which evaluation
sweeps, maps gamma to [0, 1] for the input encoding, and checks a gamma that a user gives.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.errors import UsageError

GRID_SEED = 0
"""Seed of the fixed permutations that spread a grid over more than one dimension."""


class Prior(ABC):
    """Distribution of a hypernetwork input gamma of ``dim`` independent dimensions."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of dimensions D of gamma."""

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
        return self.quantile(torch.rand(n, self.dim, generator=generator))

    def grid(self, n: int) -> Float[Tensor, "n D"]:
        """The ``n`` values of gamma over which evaluation sweeps.

        Each dimension takes the same ``n`` quantiles once. The first dimension is in ascending
        order; the others are in fixed random orders (a Latin hypercube), so that ``n`` points
        cover more than the diagonal.

        Raises:
            UsageError: If ``n`` is less than 1.
        """
        if n < 1:
            raise UsageError(f"n={n}: a grid over gamma needs at least 1 value")
        levels = self.grid_levels(n)
        generator = torch.Generator().manual_seed(GRID_SEED)
        orders = [torch.arange(n)]
        orders += [torch.randperm(n, generator=generator) for _ in range(self.dim - 1)]
        return self.quantile(torch.stack([levels[order] for order in orders], dim=1))

    def check(self, gamma: Tensor | float | Sequence[float]) -> Float[Tensor, "K D"]:
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

    def as_draws(self, gamma: Tensor | float | Sequence[float]) -> Float[Tensor, "K D"]:
        """The part of ``check`` that needs shapes only, and so waits for no device."""
        values = torch.as_tensor(gamma)
        if not values.is_floating_point():
            values = values.to(torch.get_default_dtype())
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
            raise UsageError(f"gamma[{k}, {d}] is {gamma[k, d].item()}: every value must be finite")
        return self.check_support(gamma)

    def check_support(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """Raise if a value lies outside the support; an unbounded prior takes all."""
        return gamma


@dataclass(frozen=True)
class _Bounded(Prior):
    """What the priors on an interval ``[low, high]`` share."""

    low: float = 0.0
    high: float = 1.0
    dim: int = 1
    clamp: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        _check_dim(self, self.dim)
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high:
            raise UsageError(
                f"low={self.low}, high={self.high}: {type(self).__name__} needs finite bounds"
                " with low < high"
            )

    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        """Evenly spaced levels with both end points; the middle where n is 1."""
        return torch.linspace(0.0, 1.0, n) if n > 1 else torch.tensor([0.5])

    def check_support(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """Clamp to the bounds if asked for; else raise at a value outside them."""
        if self.clamp:
            return gamma.clamp(self.low, self.high)
        outside = (gamma < self.low) | (gamma > self.high)
        if bool(outside.any()):
            k, d = outside.nonzero()[0].tolist()
            raise UsageError(
                f"gamma[{k}, {d}] is {gamma[k, d].item():g}, outside [{self.low:g},"
                f" {self.high:g}]: give a value inside, or build the prior with clamp=True"
            )
        return gamma


@dataclass(frozen=True)
class Uniform(_Bounded):
    """Uniform on ``[low, high]``, mapped to [0, 1] by min-max scaling.

    Args:
        low: Lower bound.
        high: Upper bound.
        dim: Number of dimensions D.
        clamp: Clamp a gamma that a user gives to the bounds, instead of refusing it.

    Raises:
        UsageError: If ``low >= high``, a bound is not finite, or ``dim < 1``.
    """

    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """``low + level * (high - low)``, and ``high`` itself at level 1."""
        return torch.lerp(
            torch.full_like(levels, self.low), torch.full_like(levels, self.high), levels
        )

    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """``(gamma - low) / (high - low)``."""
        return (gamma - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class LogUniform(_Bounded):
    """Uniform in ``log(gamma)``, for an input that spans orders of magnitude.

    Mapped to [0, 1] by the logarithm, then min-max scaling.

    Args:
        low: Lower bound, above 0.
        high: Upper bound.
        dim: Number of dimensions D.
        clamp: Clamp a gamma that a user gives to the bounds, instead of refusing it.

    Raises:
        UsageError: If not ``0 < low < high``, a bound is not finite, or ``dim < 1``.
    """

    low: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise UsageError(f"low={self.low}: LogUniform needs low > 0; use Uniform")

    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """``low * (high / low) ** level``, never outside the bounds by rounding."""
        gamma = self.low * (self.high / self.low) ** levels
        return gamma.clamp(self.low, self.high)

    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """``log(gamma / low) / log(high / low)``."""
        return torch.log(gamma / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class Normal(Prior):
    """Gaussian, mapped to [0, 1] by the logistic function of its standardized value.

    Args:
        mean: Mean of each dimension.
        std: Standard deviation of each dimension, above 0.
        dim: Number of dimensions D.

    Raises:
        UsageError: If ``std`` is not positive, a value is not finite, or ``dim < 1``.
    """

    mean: float = 0.0
    std: float = 1.0
    dim: int = 1

    def __post_init__(self) -> None:
        _check_dim(self, self.dim)
        if not (math.isfinite(self.mean) and math.isfinite(self.std)) or self.std <= 0:
            raise UsageError(
                f"mean={self.mean}, std={self.std}: Normal needs finite values with std > 0"
            )

    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """``mean + std * Phi^-1(level)``."""
        gamma: Tensor = self.mean + self.std * torch.special.ndtri(levels)
        return gamma

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw ``n`` values on the CPU (not through the quantile, infinite at level 0)."""
        return self.mean + self.std * torch.randn(n, self.dim, generator=generator)

    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """``1 / (1 + exp(-(gamma - mean) / std))``."""
        return torch.sigmoid((gamma - self.mean) / self.std)

    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        """The middles of ``n`` equally probable parts: there are no end points."""
        return (torch.arange(n) + 0.5) / n


def _check_dim(prior: Prior, dim: int) -> None:
    if dim < 1:
        raise UsageError(f"dim={dim}: {type(prior).__name__} needs at least 1 dimension")
