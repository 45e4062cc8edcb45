"""Input encodings E: what the hypernetwork sees of gamma."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mip_lightning.priors import Categorical, Dirichlet, Prior


class Encoding(nn.Module, ABC):
    """Maps gamma ``(K, D)`` to the first input of the trunk ``(K, E)``.

    Args:
        prior: The prior whose gamma is encoded; it brings gamma to [0, 1] where needed.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Width E of the encoding."""

    @abstractmethod
    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Encode gamma."""


EncodingType: TypeAlias = Callable[[Prior], Encoding]
"""An encoding's class, or what else makes one for a prior."""


class IdentityEncoding(Encoding):
    """gamma as it is: the default formulation, whose output scales with the input."""

    @property
    @override
    def num_features(self) -> int:
        return self.prior.dim

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Return gamma."""
        return gamma


class L2Encoding(Encoding):
    """E_L2: each dimension ``u`` in [0, 1] becomes ``[cos(u pi/2), sin(u pi/2)]``, of norm 1.

    All cosines come first, then all sines, so that D inputs give ``E = 2 D`` features of norm
    ``sqrt(D)`` whatever gamma is.

    Source: paper, Section 4, "Input Encoding"; the order is that of the package HyperLight.
    """

    @property
    @override
    def num_features(self) -> int:
        return 2 * self.prior.dim

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Encode gamma, brought to [0, 1] by the prior."""
        angle = self.prior.to_unit(gamma) * (torch.pi / 2)
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class ComplementEncoding(Encoding):
    """``[u, 1 - u]`` for each dimension ``u`` in [0, 1]: of constant sum, not of constant norm.

    All ``u`` come first, then all complements.
    """

    @property
    @override
    def num_features(self) -> int:
        return 2 * self.prior.dim

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Encode gamma, brought to [0, 1] by the prior."""
        unit = self.prior.to_unit(gamma)
        return torch.cat([unit, 1 - unit], dim=-1)


class DirectionEncoding(Encoding):
    """``gamma / |gamma|``: constant norm at the price of the magnitude, which it forgets.

    Of one dimension only the sign is left. Zero, which has no direction, stays zero.
    """

    @property
    @override
    def num_features(self) -> int:
        return self.prior.dim

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Divide gamma by its norm."""
        return F.normalize(gamma, dim=-1)


class CategoryEncoding(Encoding):
    """A learned vector of norm 1 for each category.

    The vectors start in random directions and are divided by their norm in each call.

    Args:
        prior: A ``Categorical`` prior.
        width: Width E of the vectors; by default the number of categories, at most 16.
    """

    def __init__(self, prior: Categorical, width: int | None = None) -> None:
        super().__init__(prior)
        self.vectors = nn.Parameter(torch.randn(prior.size, width or min(prior.size, 16)))

    @property
    @override
    def num_features(self) -> int:
        return self.vectors.shape[1]

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Look up the vectors."""
        return F.normalize(F.embedding(gamma[:, 0].long(), self.vectors), dim=-1)


class SimplexEncoding(Encoding):
    """The square root of each of several weights that sum to 1: of norm 1, whatever they are.

    It takes the place of ``L2Encoding`` for a ``Dirichlet`` prior, and treats all weights alike.
    """

    @property
    @override
    def num_features(self) -> int:
        return self.prior.dim

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Take the square roots."""
        return gamma.clamp(min=0.0).sqrt()


class JointEncoding(Encoding):
    """Each part of a prior by an encoding of its own, one after another.

    Args:
        prior: The prior of all parts.
        encodings: The encoding of each of ``prior.parts``.
    """

    def __init__(self, prior: Prior, encodings: list[Encoding]) -> None:
        super().__init__(prior)
        self.encodings = nn.ModuleList(encodings)
        self._dims = [part.dim for part in prior.parts]
        self._num_features = sum(encoding.num_features for encoding in encodings)

    @property
    @override
    def num_features(self) -> int:
        return self._num_features

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Encode each part of gamma."""
        parts = zip(self.encodings, gamma.split(self._dims, dim=-1), strict=True)
        return torch.cat([encoding(part) for encoding, part in parts], dim=-1)


def make_encoding(prior: Prior, encoding: EncodingType) -> Encoding:
    """The encoding of a prior: of categories always by learned vectors, of the rest as given.

    Weights that sum to 1 are encoded by their square roots where ``L2Encoding`` is given.

    Args:
        prior: The prior.
        encoding: The encoding of real numbers. It encodes them together where no part of the
            prior has an encoding of its own, for ``gamma / |gamma|`` needs them so.
    """
    own = [_own_encoding(part, encoding) for part in prior.parts]
    if all(part is None for part in own):
        return encoding(prior)
    encodings = [
        encoding(part) if its is None else its for its, part in zip(own, prior.parts, strict=True)
    ]
    return encodings[0] if len(encodings) == 1 else JointEncoding(prior, encodings)


def _own_encoding(part: Prior, encoding: EncodingType) -> Encoding | None:
    """The encoding that a prior has whatever is chosen; ``None`` for none."""
    if isinstance(part, Categorical):
        return CategoryEncoding(part)
    if isinstance(part.base_prior, Dirichlet) and encoding is L2Encoding:
        return SimplexEncoding(part)
    return None
