"""Whether a checkpoint is of this model: by its tensors, and by what they do not tell."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mip_lightning.errors import UsageError


def check_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise if names or shapes differ, naming the first few tensors that do.

    Args:
        found: The checkpoint's tensors.
        expected: The model's.

    Raises:
        UsageError: If they differ.
    """
    differences = [
        f"{name} is {_shape(found, name)} there, {_shape(expected, name)} here"
        for name in [*expected, *(name for name in found if name not in expected)]
        if _shape(found, name) != _shape(expected, name)
    ]
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise UsageError(
            f"ckpt_path: the checkpoint is of another model: {'; '.join(differences[:4])}{more}."
            " Give the primary, prior and hypernetwork that it was trained with"
        )


def check_same_architecture(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise if a part is described in other words than the model's.

    Args:
        found: The checkpoint's parts; none of them, if it is not one of ours.
        expected: The model's.

    Raises:
        UsageError: If they differ.
    """
    for part, description in found.items():
        if description != expected[part]:
            raise UsageError(
                f"ckpt_path: the checkpoint's {part} is {description}, this model's is"
                f" {expected[part]}: give the {part} that it was trained with"
            )


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


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "missing"
