"""How hypernetwork weights start.

Kaiming normal in ``fan_out`` mode with the gain of the trunk's activation, biases zero
(paper, Section 5.2). The head is initialized a predicted tensor at a time.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.layout import ParameterLayout


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
def initialize_linear(linear: nn.Linear, gain: float) -> None:
    """Kaiming normal with fan-out: weight std ``gain / sqrt(out_features)``, bias zero."""
    nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.out_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


@torch.no_grad()
def initialize_head_weight(
    weight: Float[Tensor, "P H"], layout: ParameterLayout, gain: float
) -> None:
    """Kaiming normal with fan-out, where the fan-out of a row is the size of its tensor.

    The rows that predict a tensor of n elements have std ``gain / sqrt(n)``. The rows that
    predict a tensor of one dimension, such as a bias, start at zero.

    Source: the package HyperLight 0.0.5, which re-initializes its last layer so.
    """
    for rows, (shape, size) in zip(
        weight.split(layout.sizes),
        zip(layout.shapes.values(), layout.sizes, strict=True),
        strict=True,
    ):
        if len(shape) <= 1:
            nn.init.zeros_(rows)
        else:
            nn.init.normal_(rows, std=gain / math.sqrt(size))
