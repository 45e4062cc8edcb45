"""How hypernetwork weights start: the scale of the hidden layers and of the predicted change.

A head starts so that the change ``delta`` of each predicted tensor has a target variance, given
the mean square norm of the last hidden activation, its *power*.
"""

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from mip_lightning.hypernetworks._parameter_layout import ParameterLayout
from mip_lightning.utilities.precision import real_numbers

HeadInitialization: TypeAlias = Literal[
    "kaiming_fan_out", "kaiming_fan_in", "hyperfan_in", "hyperfan_out", "calibrated", "zero"
]
"""How the head starts.

- ``kaiming_fan_out``, the paper's: the fan-out of a row is the size of the tensor it predicts.
- ``kaiming_fan_in``: the fan-in of a row is the width of the last hidden layer.
- ``hyperfan_in``, ``hyperfan_out``: the primary keeps the scale of its activations, or of its
  gradients (Chang et al., "Principled Weight Initialization for Hypernetworks", 2020).
- ``calibrated``: the target of ``kaiming_fan_out``, met exactly on average over the prior, whatever
  the number of inputs and the seed.
- ``zero``: no change at first; the primary starts as it is.
"""

HYPERFAN_SHARE = 0.5
"""Share of hyperfan's target variance that the predicted change takes where theta0 has the rest."""

PRIMARY_GAIN_SQUARED = 2.0
"""The squared gain of the primary's activations for hyperfan, that of ReLU."""


class HeadInit(NamedTuple):
    """What a head starts from.

    Attributes:
        targets: Variance that each predicted tensor's change starts with.
        power: Mean square norm of the last hidden activation at which it has this variance.
        zero: Whether the change starts at zero instead.
    """

    targets: tuple[float, ...]
    power: float = 1.0
    zero: bool = False

    @property
    def row_stds(self) -> list[float]:
        """Standard deviation of the weights of a linear head, for each predicted tensor."""
        return [0.0 if self.zero else math.sqrt(t / self.power) for t in self.targets]


def activation_gain(activation: nn.Module) -> float:
    """Gain of an activation, from ``torch.nn.init.calculate_gain``.

    Activations that the table lacks, such as GELU and SiLU, take the gain of ReLU, which they
    resemble (paper, Section B.2).
    """
    match activation:
        case nn.LeakyReLU():
            return nn.init.calculate_gain("leaky_relu", activation.negative_slope)
        case nn.Tanh():
            return nn.init.calculate_gain("tanh")
        case nn.Sigmoid():
            return nn.init.calculate_gain("sigmoid")
        case nn.SELU():
            return nn.init.calculate_gain("selu")
        case _:
            return nn.init.calculate_gain("relu")


@torch.no_grad()
def initialize_linear(
    linear: nn.Linear, gain: float, head_init: HeadInitialization = "kaiming_fan_out"
) -> None:
    """Kaiming normal, weight std ``gain / sqrt(fan)``, bias zero.

    The fan is that of the outputs (paper, Section 5.2), or that of the inputs with
    ``kaiming_fan_in`` and hyperfan, whose formulas assume that hidden layers keep their scale.
    """
    by_inputs = head_init in ("kaiming_fan_in", "hyperfan_in", "hyperfan_out")
    fan = linear.in_features if by_inputs else linear.out_features
    nn.init.normal_(linear.weight, std=gain / math.sqrt(fan))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def delta_variances(
    head_init: HeadInitialization, layout: ParameterLayout, gain: float, hidden_size: int
) -> dict[str, float]:
    """Variance that the change of each predicted tensor starts with.

    Args:
        head_init: How the head starts; ``zero`` gives what it would have instead of zero.
        layout: The predicted tensors.
        gain: Gain of the trunk's activation.
        hidden_size: Width of the last hidden layer.

    Returns:
        For ``kaiming_*``: tensors of one dimension, such as biases, start at zero (as in the
        package HyperLight 0.0.5). For ``hyperfan_*``: the table of Chang et al.; biases too. The
        two parts of a complex number have each half of its variance.
    """
    variances = _whole_variances(head_init, layout, gain, hidden_size)
    return {n: v / 2 if n in layout.complex_names else v for n, v in variances.items()}


def _whole_variances(
    head_init: HeadInitialization, layout: ParameterLayout, gain: float, hidden_size: int
) -> dict[str, float]:
    if head_init in ("hyperfan_in", "hyperfan_out"):
        return {name: _hyperfan(head_init, layout, name) for name in layout.shapes}
    if head_init == "kaiming_fan_in":
        return {n: gain**2 / hidden_size if len(s) > 1 else 0.0 for n, s in layout.shapes.items()}
    return {n: gain**2 / s.numel() if len(s) > 1 else 0.0 for n, s in layout.shapes.items()}


def _hyperfan(head_init: HeadInitialization, layout: ParameterLayout, name: str) -> float:
    """Target variance of one predicted tensor (Chang et al., Table 1, times the head's fan-in).

    A tensor ``x.bias`` is the bias of ``x.weight``; other tensors of one dimension start at zero.
    """
    layer, _, kind = name.rpartition(".")
    prefix = f"{layer}." if layer else ""
    weight = layout.shapes.get(f"{prefix}weight") if kind == "bias" else layout.shapes[name]
    if weight is None or len(weight) < 2:
        return 0.0
    kernel = math.prod(weight[2:])
    fan_in, fan_out = weight[1] * kernel, weight[0] * kernel
    if head_init == "hyperfan_in":
        if kind == "bias":
            return PRIMARY_GAIN_SQUARED / 2
        has_bias = kind == "weight" and f"{prefix}bias" in layout.shapes
        return PRIMARY_GAIN_SQUARED / fan_in / (2 if has_bias else 1)
    if kind == "bias":
        return max(0.0, PRIMARY_GAIN_SQUARED * (1 - fan_in / fan_out))
    return PRIMARY_GAIN_SQUARED / fan_out


@torch.no_grad()
def split_variance_with_theta0(
    theta0: dict[str, nn.Parameter], targets: dict[str, float]
) -> dict[str, float]:
    """Split hyperfan's target variance between theta0 and the predicted change.

    Theta0 keeps its values but for their scale. A theta0 that does not vary, as a bias of zeros,
    has no part in it.

    Args:
        theta0: The independent weights, which are scaled in place.
        targets: Variance of theta at the start.

    Returns:
        What the predicted change has of each target.
    """
    shares = {}
    for name, parameter in theta0.items():
        std = 0.0 if parameter.is_meta else float(real_numbers(parameter).std(correction=0))
        shares[name] = targets[name] * (HYPERFAN_SHARE if std > 0 else 1.0)
        if std > 0:
            parameter.mul_(math.sqrt((1 - HYPERFAN_SHARE) * targets[name]) / std)
    return shares
