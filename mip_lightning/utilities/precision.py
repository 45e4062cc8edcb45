"""Numbers in float32 or better, where those of a run in half precision would be too coarse."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor of numbers in float32, or in its own type where that is more precise.

    Args:
        tensor: Floating-point numbers of any shape.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def real_numbers(tensor: Tensor) -> Tensor:
    """A tensor of numbers; of complex ones their two parts, along one more dimension of size 2."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def default_dtype() -> torch.dtype:
    """The type of new floating-point numbers: PyTorch's default, or float32 where that is coarser.

    In the steps of a run with ``precision="bf16-true"`` Lightning makes bfloat16 the default, in
    which 0.3 is 0.30078125.
    """
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """While it lasts, PyTorch's default type is ``default_dtype()``.

    For code of others that takes the default: in bfloat16 MONAI's Dice of 1 / 9 is 0.11133.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(default_dtype())
    try:
        yield
    finally:
        torch.set_default_dtype(before)
