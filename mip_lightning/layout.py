"""How the predicted tensors lie, one after another, in one flat vector of P numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the predicted tensors, in the order in which they lie.

    Args:
        shapes: Name to shape of each predicted tensor.
    """

    shapes: Mapping[str, torch.Size]

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each tensor."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def num_predicted(self) -> int:
        """P, the number of predicted weights."""
        return sum(self.sizes)

    def split(self, flat: Float[Tensor, "*K P"]) -> dict[str, Tensor]:
        """Views of ``flat``: name to ``(*shape)`` or, for K draws, ``(K, *shape)``."""
        parts = flat.split(self.sizes, dim=-1)
        return {
            name: part.view(*flat.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
