"""Weight normalization of the predicted weights: a baseline of the paper (Section B.5)."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F


class PredictedWeightNorm(nn.Module):
    """Gives each output channel of the predicted weights a norm of its own, which is learned.

    ``magnitude * theta / |theta|`` over all but the first dimension of a weight; tensors of one
    dimension pass as they are. The magnitudes start as the norms of the primary's own weights.

    Source: Salimans and Kingma, "Weight Normalization", 2016, Equation 2.

    Args:
        theta0: The primary's own weights, by name.
    """

    def __init__(self, theta0: Mapping[str, Tensor]) -> None:
        super().__init__()
        norms = {
            name: tensor.detach().flatten(1).norm(dim=1)
            for name, tensor in theta0.items()
            if tensor.ndim > 1
        }
        self._names = tuple(norms)
        self._num_dims = {name: theta0[name].ndim for name in norms}
        self.magnitudes = nn.ParameterList(norms.values())

    def forward(self, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        """Normalize ``theta``: name to ``(*shape)`` or ``(K, *shape)``."""
        normalized = dict(theta)
        for name, magnitude in zip(self._names, self.magnitudes, strict=True):
            weight, num_dims = theta[name], self._num_dims[name]
            channels = weight.flatten(1 - num_dims)
            unit = F.normalize(channels, dim=-1) * magnitude.unsqueeze(-1)
            normalized[name] = unit.view_as(weight)
        return normalized
