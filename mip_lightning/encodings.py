"""Input encodings E: what the hypernetwork sees of gamma."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.priors import Prior


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


class IdentityEncoding(Encoding):
    """gamma as it is: the default formulation, whose output scales with the input."""

    @property
    def num_features(self) -> int:
        """E = D."""
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
    def num_features(self) -> int:
        """E = 2 D."""
        return 2 * self.prior.dim

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """Encode gamma, brought to [0, 1] by the prior."""
        angle = self.prior.to_unit(gamma) * (torch.pi / 2)
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
