"""LastCheckpoint: where training has come to, to go on from there."""

from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` at the end of each epoch, after validation, over the one before.

    Lightning's ``ModelCheckpoint(save_last=True)`` writes it only where the best checkpoint is
    written too (2.6), so that a run would go on from its best epoch, however long ago that was.

    Args:
        dirpath: Folder of the file; by default as ``ModelCheckpoint``.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath, "last", save_on_train_epoch_end=True, enable_version_counter=False
        )
