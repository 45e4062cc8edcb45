"""Priors made of others: several named ones together, stratified, with end points more often."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.priors.base import Gamma, Prior
from mip_lightning.priors.continuous import Bounded
from mip_lightning.utilities.precision import default_dtype


@dataclass(frozen=True)
class Joint(Prior):
    """Several named, independent hyperparameters, each with its own prior.

    A gamma may be given as a mapping of names to values. The names are used in logs, figures
    and errors.

    Args:
        priors: Name to prior. A prior of more than one dimension gives ``name_0``, ``name_1``, ...

    Raises:
        UsageError: If there is no prior, or a prior is itself a ``Joint``.

    Example::

        prior = Joint({"weight": LogUniform(1e-3, 1), "contrast": Categorical(["t1", "t2"])})
        model(x, gamma={"weight": 0.1, "contrast": "t2"})
    """

    priors: Mapping[str, Prior]

    def __post_init__(self) -> None:
        if not self.priors:
            raise UsageError("priors={}: name at least one hyperparameter and its prior")
        for name, prior in self.priors.items():
            if isinstance(prior, Joint):
                raise UsageError(f"priors: {name!r} is itself a Joint: name its parts here")

    @property
    @override
    def dim(self) -> int:
        return sum(prior.dim for prior in self.priors.values())

    @property
    @override
    def parts(self) -> tuple[Prior, ...]:
        return tuple(part for prior in self.priors.values() for part in prior.parts)

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(
            name if prior.dim == 1 else f"{name}_{d}"
            for name, prior in self.priors.items()
            for d in range(prior.dim)
        )

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return self._each(lambda prior, part: prior.quantile(part), levels)

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return self._each(lambda prior, part: prior.to_unit(part), gamma)

    @override
    def clamped(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return self._each(lambda prior, part: prior.clamped(part), gamma)

    @override
    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        return self._each(lambda prior, part: prior.contains(part), gamma)

    @override
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        return torch.cat([prior.sample(n, generator) for prior in self.priors.values()], dim=1)

    @override
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        return next(iter(self.priors.values())).grid_levels(n)

    @override
    def grid_in_orders(self, orders: Sequence[Tensor]) -> Float[Tensor, "n D"]:
        parts, first = [], 0
        for prior in self.priors.values():
            parts.append(prior.grid_in_orders(orders[first : first + prior.dim]))
            first += prior.dim
        return torch.cat(parts, dim=1)

    @override
    def as_draws(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        if not isinstance(gamma, Mapping):
            return super().as_draws(gamma)
        if set(gamma) != set(self.priors):
            raise UsageError(
                f"gamma names {', '.join(gamma) or 'nothing'}: give a value for each of"
                f" {', '.join(self.priors)}"
            )
        parts = [prior.as_draws(gamma[name]) for name, prior in self.priors.items()]
        num_draws = max(len(part) for part in parts)
        try:
            return torch.cat([part.expand(num_draws, -1) for part in parts], dim=1)
        except RuntimeError as error:
            counts = ", ".join(str(len(part)) for part in parts)
            raise UsageError(
                f"gamma: {', '.join(gamma)} hold {counts} draws: give the same number, or one"
            ) from error

    @override
    def support(self, dimension: int) -> str:
        for prior in self.priors.values():
            if dimension < prior.dim:
                return prior.support(dimension)
            dimension -= prior.dim
        raise IndexError(dimension)

    @override
    def means(self, gamma: Float[Tensor, "K D"]) -> dict[str, Tensor]:
        means = gamma.mean(dim=0)
        return {f"gamma/{name}": mean for name, mean in zip(self.names, means, strict=True)}

    def split(self, gamma: Float[Tensor, "K D"]) -> list[Tensor]:
        """The part of each prior, ``(K, d)``."""
        return list(gamma.split([prior.dim for prior in self.priors.values()], dim=1))

    def _each(self, function: Callable[[Prior, Tensor], Tensor], gamma: Tensor) -> Tensor:
        parts = zip(self.priors.values(), self.split(gamma), strict=True)
        return torch.cat([function(prior, part) for prior, part in parts], dim=1)


@dataclass(frozen=True)
class _PriorWrapper(Prior):
    """What a prior has that changes only how another one is drawn from."""

    prior: Prior

    @property
    @override
    def dim(self) -> int:
        return self.prior.dim

    @property
    @override
    def base_prior(self) -> Prior:
        return self.prior.base_prior

    @property
    @override
    def parts(self) -> tuple[Prior, ...]:
        return self.prior.parts

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return self.prior.names

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return self.prior.quantile(levels)

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return self.prior.to_unit(gamma)

    @override
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        return self.prior.grid_levels(n)

    @override
    def grid(self, n: int) -> Float[Tensor, "points D"]:
        return self.prior.grid(n)

    @override
    def grid_in_orders(self, orders: Sequence[Tensor]) -> Float[Tensor, "n D"]:
        return self.prior.grid_in_orders(orders)

    @override
    def as_draws(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        return self.prior.as_draws(gamma)

    @override
    def clamped(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        return self.prior.clamped(gamma)

    @override
    def means(self, gamma: Float[Tensor, "K D"]) -> dict[str, Tensor]:
        return self.prior.means(gamma)

    @override
    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        return self.prior.contains(gamma)

    @override
    def support(self, dimension: int) -> str:
        return self.prior.support(dimension)


@dataclass(frozen=True)
class EndPointOversampling(_PriorWrapper):
    """Draws an end point of a bounded prior now and then, so that the ends are learned too.

    Source: HyperMorph's reference implementation, which draws one of {0, 1} with probability 0.2.

    Args:
        prior: A bounded prior, such as ``Uniform``.
        probability: Share of the draws, in [0, 1], that is one of the two end points.

    Raises:
        UsageError: If the prior is not bounded or the probability is out of range.
    """

    prior: Bounded
    probability: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.prior, Bounded):
            raise UsageError(f"prior={self.prior}: EndPointOversampling needs a bounded prior")
        if not 0 <= self.probability <= 1:
            raise UsageError(f"probability={self.probability}: give a share in [0, 1]")

    @override
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        gamma = self.prior.sample(n, generator)
        chance = torch.rand(n, self.dim, generator=generator, dtype=default_dtype())
        gamma[chance < self.probability] = self.prior.low
        gamma[chance < self.probability / 2] = self.prior.high
        return gamma


@dataclass(frozen=True)
class Stratified(_PriorWrapper):
    """Draws that cover a prior evenly: of K draws, one from each of K equally probable parts.

    Each dimension takes the parts in a random order of its own (a random Latin hypercube), so each
    single draw still follows the prior.

    Source: McKay et al., "A Comparison of Three Methods for Selecting Values of Input Variables",
    1979.

    Args:
        prior: The prior that is drawn from.

    Raises:
        UsageError: If the prior is not drawn from by its quantiles alone.
    """

    def __post_init__(self) -> None:
        own = self.prior.priors.values() if isinstance(self.prior, Joint) else [self.prior]
        if any(isinstance(prior, _PriorWrapper) for prior in own):
            raise UsageError(f"prior={self.prior}: Stratified takes a prior that wraps no other")

    @override
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        parts = [torch.randperm(n, generator=generator) for _ in range(self.dim)]
        within = torch.rand(n, self.dim, generator=generator, dtype=default_dtype())
        levels = (torch.stack(parts, dim=1) + within) / n
        # An unbounded prior is infinite at the levels 0 and 1.
        smallest = torch.finfo(levels.dtype).eps / 2
        return self.prior.quantile(levels.clamp(smallest, 1 - smallest))
