"""The hypernetwork h(gamma; omega): encoding, trunk and head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.errors import UsageError
from mip_lightning.hypernetworks._initialization import (
    HeadInit,
    HeadInitialization,
    activation_gain,
    initialize_linear,
)
from mip_lightning.hypernetworks._parameter_layout import ParameterLayout
from mip_lightning.hypernetworks.encodings import Encoding, EncodingType
from mip_lightning.hypernetworks.heads import DenseHead, HeadType

CALIBRATION_SIZE = 256
"""Number of gamma over which the power of the hidden activation is measured."""


@dataclass(frozen=True)
class HypernetworkConfig:
    """What a user chooses of a hypernetwork's architecture; the defaults are the paper's.

    Args:
        hidden_sizes: Widths of the hidden layers, at least one.
        activation: A class of ``torch.nn`` by its name, or anything that makes a module.
        encoding: Encoding of gamma, made from the prior; by default the formulation's.
        head: ``DenseHead``, ``LowRankHead`` or ``ChunkedHead``, or what else makes a head.
        head_init: How the head, and with it the trunk, starts.
        layer_norm: Normalize the features of each hidden layer before its activation (the
            paper's LayerNorm-H, a baseline that forgets the magnitude of gamma).

    Raises:
        UsageError: If there is no hidden layer, a width is below 1, ``torch.nn`` has no
            activation of that name, or ``head_init`` is unknown.
    """

    hidden_sizes: Sequence[int] = (16, 128)
    activation: str | Callable[[], nn.Module] = "LeakyReLU"
    encoding: EncodingType | None = None
    head: HeadType = DenseHead
    head_init: HeadInitialization = "kaiming_fan_out"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise UsageError(
                f"hidden_sizes={list(self.hidden_sizes)}: give at least one width, each 1 or more"
            )
        if self.head_init not in get_args(HeadInitialization):
            raise UsageError(
                f"head_init={self.head_init!r}: choose one of"
                f" {', '.join(get_args(HeadInitialization))}"
            )
        self.make_activation()

    @property
    def scales_theta0(self) -> bool:
        """Whether ``head_init`` gives theta0 another scale than its weights had."""
        return self.head_init.startswith("hyperfan")

    def make_activation(self) -> nn.Module:
        """A new activation module."""
        if not isinstance(self.activation, str):
            return self.activation()
        activation = getattr(nn.modules.activation, self.activation, None)
        known = getattr(activation, "__module__", None) == nn.modules.activation.__name__
        if activation is None or not known:
            raise UsageError(
                f"activation={self.activation!r} is not an activation of torch.nn: name one, such"
                " as LeakyReLU, GELU or Tanh, or give a class_path"
            )
        try:
            made: nn.Module = activation()
        except TypeError as error:
            raise UsageError(
                f"activation={self.activation!r} needs arguments: give its class_path with"
                " init_args"
            ) from error
        return made


class Hypernetwork(nn.Module):
    """Predicts the flat change delta of the primary weights from gamma.

    Fully connected, ``activation(W x + b)`` on the hidden layers, then a linear head without a
    bias (paper, Equation 1 and Section 5.2; its last bias is theta0, which lives in the primary).

    Args:
        encoding: Encodes gamma.
        layout: The predicted tensors.
        config: Widths, activation, head and initialization.
        targets: Variance that the change of each predicted tensor starts with, by name.
    """

    def __init__(
        self,
        encoding: Encoding,
        layout: ParameterLayout,
        config: HypernetworkConfig,
        targets: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.encoding = encoding
        gain = activation_gain(config.make_activation())
        layers: list[nn.Module] = []
        in_features = encoding.num_features
        for width in config.hidden_sizes:
            linear = nn.Linear(in_features, width)
            initialize_linear(linear, gain, config.head_init)
            layers += [linear, *([nn.LayerNorm(width)] if config.layer_norm else [])]
            layers.append(config.make_activation())
            in_features = width
        self.trunk = nn.Sequential(*layers)
        start = HeadInit(
            tuple(targets[name] for name in layout.shapes),
            self._power(config.head_init, in_features),
            zero=config.head_init == "zero",
        )
        self.head = config.head(in_features, layout, start)

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K P"]:
        """Predict the flat change for each of K draws."""
        hidden: Tensor = self.trunk(self._encoded(gamma))
        delta: Tensor = self.head(hidden)
        return delta

    def _encoded(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K E"]:
        """What the trunk takes, in its precision."""
        encoded: Tensor = self.encoding(gamma)
        return encoded.to(next(self.trunk.parameters()).dtype)

    @torch.no_grad()
    def _power(self, head_init: HeadInitialization, hidden_size: int) -> float:
        """Mean square norm of the last hidden activation that the head reckons with."""
        reference = next(self.trunk.parameters())
        if head_init not in ("calibrated", "hyperfan_in", "hyperfan_out") or reference.is_meta:
            return 1.0
        encoded = self._encoded(self.encoding.prior.grid(CALIBRATION_SIZE).to(reference.device))
        if head_init == "calibrated":
            hidden: Tensor = self.trunk(encoded)
            return float(hidden.square().sum(dim=1).mean())
        # Hidden layers with the fan-in of their inputs keep the mean square of a feature.
        return hidden_size * float(encoded.square().mean())
