"""WholeCheckpoints: how checkpoints get to the disk and back."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from mip_lightning.utilities.files import check_unchanged, replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, but whole at every moment, and compared with their checksums.

    Lightning 2.6 writes to the folder for temporary files first. Where this is on another file
    system, the file that was there before is gone while the new one is copied.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None or _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)

    @override
    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not _is_remote(path) and Path(path).is_file():
            check_unchanged(path, "ckpt_path")
        return super().load_checkpoint(path, *args, **kwargs)


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)
