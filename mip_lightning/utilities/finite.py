"""What is not a finite number: predictions, weights, and what is said of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mip_lightning.utilities.nested import tensors_in


def has_nan(values: Any) -> Tensor:
    """Whether a number in tensors, or in containers of them, is NaN; looks at no value itself.

    Args:
        values: Tensors, containers of tensors, anything else.

    Returns:
        A bool of shape ``()``, on the device of the first tensor.
    """
    found = [t.isnan().any() for t in tensors_in([values]) if holds_numbers(t)]
    return torch.stack(found).any() if found else torch.tensor(False)


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Name of the first weight with a number that is NaN or infinite; waits once for the device."""
    numbers = {name: weight for name, weight in weights.items() if holds_numbers(weight)}
    if not numbers:
        return None
    finite = torch.stack([weight.isfinite().all() for weight in numbers.values()])
    return next((n for n, good in zip(numbers, finite.tolist(), strict=True) if not good), None)


def holds_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is of real or complex numbers, not whole ones."""
    return tensor.is_floating_point() or tensor.is_complex()


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name.

    Others may hold infinities with a purpose, as masks do.
    """
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
