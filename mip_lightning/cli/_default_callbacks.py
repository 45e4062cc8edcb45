"""What every run has, unless the user has one of its kind: callbacks, loggers."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from mip_lightning.callbacks import (
    GammaCurve,
    HyperModelSummary,
    LastCheckpoint,
    NiftiWriter,
    RunProgressBar,
)
from mip_lightning.cli._start_checks import StartChecks
from mip_lightning.utilities.files import first_free


def default_callbacks(
    subcommand: str, options: Namespace, chosen: Sequence[Callback]
) -> list[Callback]:
    """The callbacks that a run has next to the user's own; it changes nothing.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        options: The subcommand's options, with built classes.
        chosen: The user's callbacks.
    """
    trainer = options.trainer
    callbacks: list[Callback] = []

    def lacks(kind: type[Callback]) -> bool:
        return not any(isinstance(callback, kind) for callback in chosen)

    if lacks(GammaCurve):
        callbacks.append(GammaCurve())
    if lacks(ModelSummary) and trainer.enable_model_summary is not False:
        callbacks.append(HyperModelSummary())
    if lacks(ProgressBar) and trainer.enable_progress_bar is not False:
        callbacks.append(RunProgressBar())
    if subcommand == "fit":
        callbacks.append(StartChecks())
        if trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
            own = [callback for callback in chosen if isinstance(callback, ModelCheckpoint)]
            has_best = any(callback.monitor for callback in own)
            if not has_best and trainer.limit_val_batches != 0:  # else there is no best
                callbacks.append(options.checkpoint)
            if not any(c.save_last or isinstance(c, LastCheckpoint) for c in own):
                callbacks.append(LastCheckpoint())
    if subcommand == "predict":
        volumes = options.model.predicts_volumes
        callbacks.append(NiftiWriter() if volumes else options.predictions)
    return callbacks


def default_loggers(folder: Path) -> list[Logger]:
    """TensorBoard in the run's folder, and ``metrics.csv`` in ``csv/`` (``csv_1`` once resumed)."""
    return [
        TensorBoardLogger(folder, name="", version=""),
        CSVLogger(folder, name="", version=first_free(folder / "csv").name),
    ]
