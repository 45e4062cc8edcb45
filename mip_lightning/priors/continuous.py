"""Priors of real numbers: on an interval, even in gamma or in a function of it, and Gaussian."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.priors.base import Prior, evenly_spaced, midpoints
from mip_lightning.utilities.precision import default_dtype


@dataclass(frozen=True)
class Bounded(Prior):
    """Uniform in an increasing function of gamma on ``[low, high]``: what such priors share."""

    low: float = 0.0
    high: float = 1.0
    dim: int = 1
    clamp: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        _check_dim(self, self.dim)
        _as_floats(self, "low", "high")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high:
            raise UsageError(
                f"low={self.low}, high={self.high}: {type(self).__name__} needs finite bounds"
                " with low < high"
            )

    @abstractmethod
    def transform(self, gamma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The function in which gamma is uniform."""

    @abstractmethod
    def inverse(self, transformed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The inverse of ``transform``."""

    @property
    def transformed_bounds(self) -> tuple[float, float]:
        """``transform`` of the bounds, in float64."""
        low, high = self.transform(
            torch.tensor([self.low, self.high], dtype=torch.float64)
        ).tolist()
        return low, high

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        low, high = self.transformed_bounds
        transformed = torch.lerp(
            torch.full_like(levels, low), torch.full_like(levels, high), levels
        )
        return self.inverse(transformed).clamp(self.low, self.high)

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        low, high = self.transformed_bounds
        return (self.transform(gamma) - low) / (high - low)

    @override
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        return evenly_spaced(n)

    @override
    def clamped(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return gamma.clamp(self.low, self.high) if self.clamp else gamma

    @override
    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        return (gamma >= self.low) & (gamma <= self.high)

    @override
    def support(self, dimension: int) -> str:
        return (
            f"[{self.low:g}, {self.high:g}]: give a value inside, or build the prior with"
            " clamp=True"
        )


@dataclass(frozen=True)
class Uniform(Bounded):
    """Uniform on ``[low, high]``, mapped to [0, 1] by min-max scaling.

    Args:
        low: Lower bound.
        high: Upper bound.
        dim: Number of dimensions D.
        clamp: Clamp a gamma that a user gives to the bounds, instead of refusing it.

    Raises:
        UsageError: If ``low >= high``, a bound is not finite, or ``dim < 1``.
    """

    @property
    @override
    def transformed_bounds(self) -> tuple[float, float]:
        return self.low, self.high

    @override
    def transform(self, gamma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return gamma

    @override
    def inverse(self, transformed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return transformed


@dataclass(frozen=True)
class LogUniform(Bounded):
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

    @property
    @override
    def transformed_bounds(self) -> tuple[float, float]:
        return math.log(self.low), math.log(self.high)

    @override
    def transform(self, gamma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return gamma.log()

    @override
    def inverse(self, transformed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return transformed.exp()


@dataclass(frozen=True)
class LogOddsUniform(Bounded):
    """Uniform in the log-odds: ``gamma / (1 - gamma)``, a ratio of two weights, is log-uniform.

    For a trade-off ``(1 - gamma) * a + gamma * b``, each order of magnitude of the ratio of the
    weights is then as likely as another. Mapped to [0, 1] by the log-odds, then min-max scaling.

    Args:
        low: Lower bound, above 0.
        high: Upper bound, below 1.
        dim: Number of dimensions D.
        clamp: Clamp a gamma that a user gives to the bounds, instead of refusing it.

    Raises:
        UsageError: If not ``0 < low < high < 1``, or ``dim < 1``.
    """

    low: float = 1e-3
    high: float = 1 - 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0 or self.high >= 1:
            raise UsageError(
                f"low={self.low}, high={self.high}: LogOddsUniform needs 0 < low and high < 1"
            )

    @property
    @override
    def transformed_bounds(self) -> tuple[float, float]:
        return math.log(self.low / (1 - self.low)), math.log(self.high / (1 - self.high))

    @override
    def transform(self, gamma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return gamma.logit()

    @override
    def inverse(self, transformed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return transformed.sigmoid()


@dataclass(frozen=True)
class SquareRootUniform(Bounded):
    """Uniform in ``sqrt(gamma)``: denser towards 0, which it may include.

    Mapped to [0, 1] by the square root, then min-max scaling.

    Args:
        low: Lower bound, 0 or above.
        high: Upper bound.
        dim: Number of dimensions D.
        clamp: Clamp a gamma that a user gives to the bounds, instead of refusing it.

    Raises:
        UsageError: If not ``0 <= low < high``, a bound is not finite, or ``dim < 1``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low < 0:
            raise UsageError(f"low={self.low}: SquareRootUniform needs low >= 0")

    @property
    @override
    def transformed_bounds(self) -> tuple[float, float]:
        return math.sqrt(self.low), math.sqrt(self.high)

    @override
    def transform(self, gamma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return gamma.sqrt()

    @override
    def inverse(self, transformed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return transformed.square()


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
        _as_floats(self, "mean", "std")
        if not (math.isfinite(self.mean) and math.isfinite(self.std)) or self.std <= 0:
            raise UsageError(
                f"mean={self.mean}, std={self.std}: Normal needs finite values with std > 0"
            )

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        gamma: Tensor = self.mean + self.std * torch.special.ndtri(levels)
        return gamma

    @override
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        standard = torch.randn(n, self.dim, generator=generator, dtype=default_dtype())
        return self.mean + self.std * standard

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return torch.sigmoid((gamma - self.mean) / self.std)

    @override
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        return midpoints(n)


def _as_floats(prior: Prior, *names: str) -> None:
    """Make ``Uniform(0, 1)`` be ``Uniform(0.0, 1.0)``, as checkpoints and messages name it."""
    for name in names:
        object.__setattr__(prior, name, float(getattr(prior, name)))


def _check_dim(prior: Prior, dim: int) -> None:
    if dim < 1:
        raise UsageError(f"dim={dim}: {type(prior).__name__} needs at least 1 dimension")
