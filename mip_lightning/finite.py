"""What is not a finite number: predictions, weights, and what is said of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from mip_lightning.draws import tensors_in
from mip_lightning.errors import UsageError


class NonFiniteError(UsageError):
    """The loss, a gradient or a weight is not a finite number: training cannot go on as it is."""


def has_nan(values: Any) -> Tensor:
    """Whether a number in tensors, or in containers of them, is NaN; looks at no value itself.

    Args:
        values: Tensors, containers of tensors, anything else.

    Returns:
        A bool of shape ``()``, on the device of the first tensor.
    """
    found = [t.isnan().any() for t in tensors_in([values]) if t.is_floating_point()]
    return torch.stack(found).any() if found else torch.tensor(False)


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Name of the first weight with a number that is NaN or infinite; waits once for the device."""
    numbers = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    if not numbers:
        return None
    finite = torch.stack([weight.isfinite().all() for weight in numbers.values()])
    return next((n for n, good in zip(numbers, finite.tolist(), strict=True) if not good), None)


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name.

    Others may hold infinities with a purpose, as masks do.
    """
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def latest_checkpoint(trainer: Trainer) -> str:
    """The newest file; Lightning names a checkpoint before it is written, and forgets others."""
    folders = {
        Path(checkpoint.dirpath)
        for checkpoint in trainer.checkpoint_callbacks
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is not None
    }
    written = [path for folder in folders for path in folder.glob("*.ckpt")]
    return str(max(written, key=lambda path: path.stat().st_mtime)) if written else ""


def way_out(trainer: Trainer) -> str:
    """What to do where training has come to numbers that are not finite."""
    path = latest_checkpoint(trainer)
    return f"go on from {path}" if path else "there is no checkpoint yet: start again"
