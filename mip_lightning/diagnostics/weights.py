"""The scale of the predicted weights at each gamma of a grid, and how it depends on gamma."""

from collections import defaultdict
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.priors import Prior
from mip_lightning.utilities.norms import norm
from mip_lightning.utilities.precision import at_least_float32

ALL = "all"
"""Name under which all predicted tensors are taken together."""


class Proportionality(NamedTuple):
    """Least-squares line of std(theta) against ``|gamma|``.

    Attributes:
        slope: In units of the mean std, so that it is comparable between networks: 2 for a line
            through zero over an evenly spaced grid from 0, about 0 where the scale does not
            depend on gamma.
        r2: Share of the variance of std that the line explains; 0 where std is constant.
    """

    slope: float
    r2: float


def proportionality(magnitude: Float[Tensor, " n"], std: Float[Tensor, " n"]) -> Proportionality:
    """Fit the line, in float64.

    Args:
        magnitude: ``|gamma|`` of each grid value.
        std: Standard deviation of the predicted weights there.
    """
    x, y = magnitude.double(), std.double()
    x, deviation = x - x.mean(), y - y.mean()
    explained, total = x @ x, deviation @ deviation
    if explained == 0 or total == 0:
        return Proportionality(0.0, 0.0)
    slope = (x @ deviation) / explained
    r2 = (x @ deviation) ** 2 / (explained * total)
    return Proportionality(float(slope / y.mean()), float(r2))


class WeightStatistics(NamedTuple):
    """Of one predicted tensor at each of n gammas, over its elements, on the CPU.

    Attributes:
        std: Standard deviation (population form, so that a tensor of one element has 0).
        mean: Mean.
        norm: Euclidean norm.
    """

    std: Float[Tensor, " n"]
    mean: Float[Tensor, " n"]
    norm: Float[Tensor, " n"]


@torch.no_grad()
def weight_statistics(model: HyperModel, grid: Float[Tensor, "n D"]) -> dict[str, WeightStatistics]:
    """Statistics of the predicted weights, for ``all`` and for each predicted tensor."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for gamma in grid:
        theta = {
            name: at_least_float32(t) for name, t in model.at(gamma, check=False).theta.items()
        }
        everything = torch.cat([tensor.flatten() for tensor in theta.values()])
        for name, tensor in {ALL: everything, **theta}.items():
            found[name].append(torch.stack([tensor.std(correction=0), tensor.mean(), norm(tensor)]))
    return {
        name: WeightStatistics(*torch.stack(values).cpu().unbind(dim=1))
        for name, values in found.items()
    }


def along_axis(prior: Prior, dimension: int, n: int) -> Float[Tensor, "n D"]:
    """A grid along one dimension of gamma, with the others at their medians.

    Args:
        prior: The prior.
        dimension: The dimension that varies.
        n: Number of values.
    """
    levels = torch.full((n, prior.dim), 0.5)
    grid = prior.quantile(levels)
    grid[:, dimension] = prior.grid_in_orders([torch.arange(n)] * prior.dim)[:, dimension]
    return grid
