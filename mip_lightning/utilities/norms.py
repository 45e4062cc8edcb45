"""The norm of many numbers, right to the precision of its type."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import get_total_norm

from mip_lightning.utilities.precision import at_least_float32

BLOCK = 2**16
"""Numbers whose squares are added up at a time."""


def norm(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The Euclidean norm, in float32 or better.

    On a CPU torch adds all squares one after another: in float32 the norm of 25 million numbers is
    off by a thousandth (torch 2.14). In blocks it is not.

    Args:
        tensor: The numbers, on any device.
    """
    return get_total_norm(at_least_float32(tensor).flatten().split(BLOCK))


def total_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The Euclidean norm of the numbers of several tensors together, in float32 or better.

    Without a copy of any: in float16, which ends at 65504, each tensor's own norm is summed up in
    float32.

    Args:
        tensors: One or more tensors of any shape, gradients in factors among them.
    """
    return get_total_norm(
        [torch.linalg.vector_norm(t, dtype=torch.float32) if t.itemsize < 4 else t for t in tensors]
    )
