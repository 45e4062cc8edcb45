"""Priors over weights that sum to 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from mip_lightning.errors import UsageError
from mip_lightning.priors.base import Gamma, Prior, evenly_spaced

SUM_TOLERANCE = 1e-4
"""How far from 1 the sum of weights that a user gives may be."""


@dataclass(frozen=True)
class Dirichlet(Prior):
    """Weights of several losses, say, from 0 to 1, that sum to 1: the symmetric Dirichlet.

    The quantiles are those of stick breaking: the first weight is a part of 1, by a Beta
    distribution, the second one a part of the rest, and so on. The last level counts for nothing.

    Args:
        weights: Their names, or how many there are; 2 or more.
        concentration: Above 0: 1 is uniform over the simplex, less prefers its corners.

    Raises:
        UsageError: If there are fewer than 2 weights, one is named twice, or ``concentration`` is
            not above 0.

    Example::

        prior = Stratified(Dirichlet(["dice", "boundary"]))
        model(x, gamma={"dice": 0.7, "boundary": 0.3})

    Source: Connor and Mosimann, "Concepts of Independence for Proportions", 1969 (stick breaking).
    """

    weights: Sequence[str] | int
    concentration: float = 1.0

    def __post_init__(self) -> None:
        named = self.weights
        if not isinstance(named, int):
            object.__setattr__(self, "weights", tuple(named))
        count = named if isinstance(named, int) else len(set(named))
        if count < 2 or (not isinstance(named, int) and count < len(named)):
            raise UsageError(f"weights={named!r}: give 2 or more, each name once")
        if not 0 < self.concentration < float("inf"):
            raise UsageError(f"concentration={self.concentration}: give a number above 0")

    @property
    @override
    def dim(self) -> int:
        return self.weights if isinstance(self.weights, int) else len(self.weights)

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return super().names if isinstance(self.weights, int) else tuple(self.weights)

    @override
    def quantile(self, levels: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        from scipy.special import betaincinv

        exact = levels.detach().cpu().double()
        rest, found = torch.ones_like(exact[:, 0]), []
        for index in range(self.dim - 1):
            share = betaincinv(*self._parameters(index), exact[:, index].numpy())
            found.append(rest * torch.as_tensor(share))
            rest = rest - found[-1]
        return torch.stack([*found, rest.clamp(min=0.0)], dim=1).to(levels)

    @override
    def to_unit(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        from scipy.special import betainc

        exact = gamma.detach().cpu().double()
        rest, found = torch.ones_like(exact[:, 0]), []
        for index in range(self.dim - 1):
            share = (exact[:, index] / rest).nan_to_num(nan=0.5).clamp(0.0, 1.0)
            found.append(torch.as_tensor(betainc(*self._parameters(index), share.numpy())))
            rest = (rest - exact[:, index]).clamp(min=0.0)
        return torch.stack([*found, torch.full_like(rest, 0.5)], dim=1).to(gamma)

    @override
    def grid_levels(self, n: int) -> Float[Tensor, " n"]:
        return evenly_spaced(n)

    @override
    def as_draws(self, gamma: Gamma) -> Float[Tensor, "K D"]:
        if not isinstance(gamma, Mapping):
            return super().as_draws(gamma)
        if set(gamma) != set(self.names):
            raise UsageError(
                f"gamma names {', '.join(gamma) or 'nothing'}: give each of {', '.join(self.names)}"
            )
        return super().as_draws(torch.as_tensor([gamma[name] for name in self.names]))

    @override
    def means(self, gamma: Float[Tensor, "K D"]) -> dict[str, Tensor]:
        named = zip(self.names, gamma.mean(dim=0), strict=True)
        return {name if name.startswith("gamma") else f"gamma_{name}": m for name, m in named}

    @override
    def contains(self, gamma: Float[Tensor, "K D"]) -> Bool[Tensor, "K D"]:
        sums = (gamma.sum(dim=1, keepdim=True) - 1).abs() <= SUM_TOLERANCE
        return (gamma >= 0) & (gamma <= 1) & sums

    @override
    def support(self, dimension: int) -> str:
        return f"the simplex: give {self.dim} numbers from 0 to 1 that sum to 1"

    def _parameters(self, index: int) -> tuple[float, float]:
        """Those of the Beta distribution of a weight's share of what is left."""
        return self.concentration, self.concentration * (self.dim - 1 - index)
