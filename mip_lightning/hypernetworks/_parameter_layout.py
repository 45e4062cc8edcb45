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
        complex_names: Those of complex numbers: both of their parts are predicted.
    """

    shapes: Mapping[str, torch.Size]
    complex_names: frozenset[str] = frozenset()

    @property
    def real_shapes(self) -> list[torch.Size]:
        """Shape of the numbers that are predicted for each tensor.

        Of a complex one the real parts come first, and then the imaginary ones, as more rows.
        """
        return [
            torch.Size((2 * (shape[0] if shape else 1), *shape[1:]))
            if name in self.complex_names
            else shape
            for name, shape in self.shapes.items()
        ]

    @property
    def sizes(self) -> list[int]:
        """Number of predicted numbers of each tensor."""
        return [math.prod(shape) for shape in self.real_shapes]

    @property
    def num_predicted(self) -> int:
        """P, the number of predicted weights."""
        return sum(self.sizes)

    def split(self, flat: Float[Tensor, "*K P"]) -> dict[str, Tensor]:
        """Views of ``flat``: name to ``(*shape)`` or, for K draws, ``(K, *shape)``.

        Complex tensors are no views, and of single precision at least.
        """
        lead = flat.shape[:-1]
        split = {}
        parts = flat.split(self.sizes, dim=-1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            if name in self.complex_names:
                wide = part.to(torch.promote_types(part.dtype, torch.float32))
                split[name] = torch.complex(*(p.view(lead + shape) for p in wide.chunk(2, dim=-1)))
            else:
                split[name] = part.view(lead + shape)
        return split


def with_channels_as_in(reference: Tensor, value: Tensor) -> Tensor:
    """Put the channels of a convolution's weight last if another one's are, as its strides tell.

    A sum takes that order from its first term, but for kernels of one pixel or one channel: there
    both orders are one in memory, torch takes the ordinary one, and a convolution goes by strides.

    Args:
        reference: A weight.
        value: Another one of its shape; of another shape it stays as it is.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(reference.ndim)
    if last is None or value.ndim != reference.ndim or value.stride() == reference.stride():
        return value
    return value.to(memory_format=last) if reference.is_contiguous(memory_format=last) else value
