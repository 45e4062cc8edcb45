"""The hypernetwork h(gamma; omega): encoding, trunk and head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.encodings import Encoding
from mip_lightning.errors import UsageError
from mip_lightning.heads import DenseHead
from mip_lightning.initialization import activation_gain, initialize_linear
from mip_lightning.layout import ParameterLayout
from mip_lightning.priors import Prior


@dataclass(frozen=True)
class HypernetworkConfig:
    """What a user chooses of a hypernetwork's architecture; the defaults are the paper's.

    Args:
        hidden_sizes: Widths of the hidden layers, at least one.
        activation: A class of ``torch.nn`` by its name, or anything that makes a module.
        encoding: Encoding of gamma, made from the prior; by default the formulation's.

    Raises:
        UsageError: If there is no hidden layer, a width is below 1, or ``torch.nn`` has no
            activation of that name.
    """

    hidden_sizes: Sequence[int] = (16, 128)
    activation: str | Callable[[], nn.Module] = "LeakyReLU"
    encoding: Callable[[Prior], Encoding] | None = None

    def __post_init__(self) -> None:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise UsageError(
                f"hidden_sizes={list(self.hidden_sizes)}: give at least one width, each 1 or more"
            )
        self.make_activation()

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
        config: Widths and activation of the hidden layers.
    """

    def __init__(
        self, encoding: Encoding, layout: ParameterLayout, config: HypernetworkConfig
    ) -> None:
        super().__init__()
        self.encoding = encoding
        gain = activation_gain(config.make_activation())
        layers: list[nn.Module] = []
        in_features = encoding.num_features
        for width in config.hidden_sizes:
            linear = nn.Linear(in_features, width)
            initialize_linear(linear, gain)
            layers += [linear, config.make_activation()]
            in_features = width
        self.trunk = nn.Sequential(*layers)
        self.head = DenseHead(in_features, layout, gain)

    def forward(self, gamma: Float[Tensor, "K D"]) -> Float[Tensor, "K P"]:
        """Predict the flat change for each of K draws."""
        hidden: Tensor = self.trunk(self.encoding(gamma))
        delta: Tensor = self.head(hidden)
        return delta
