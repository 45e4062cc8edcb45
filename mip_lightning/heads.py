"""Heads: from the last hidden activation to the flat predicted change delta."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mip_lightning.initialization import initialize_head_weight
from mip_lightning.layout import ParameterLayout


class DenseHead(nn.Module):
    """One ``(P, H)`` matrix, without a bias: the last layer's bias is theta0.

    Args:
        hidden_size: Width H of the last hidden activation.
        layout: The predicted tensors.
        gain: Gain of the initialization.
    """

    def __init__(self, hidden_size: int, layout: ParameterLayout, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layout.num_predicted, hidden_size))
        initialize_head_weight(self.weight, layout, gain)

    def forward(self, hidden: Float[Tensor, "K H"]) -> Float[Tensor, "K P"]:
        """Predict the flat change for each of K draws."""
        return F.linear(hidden, self.weight)
