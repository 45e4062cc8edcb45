"""Where callbacks put their files, so that none is half-written and none is overwritten."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import Value, first_free, replacing
from mip_lightning.utilities.precision import at_least_float32


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run's files: the file logger's, or else ``default_root_dir``.

    Call it on all ranks, from ``setup``: Lightning broadcasts the answer of rank 0.
    """
    if isinstance(trainer.logger, (CSVLogger, TensorBoardLogger)):
        folder = trainer.log_dir
    else:
        folder = trainer.strategy.broadcast(trainer.default_root_dir)
    return Path(folder or ".")


def writes_files(trainer: Trainer) -> bool:
    """Whether this process writes files: rank 0, and not in ``fast_dev_run``."""
    # Lightning documents the attribute but sets it from elsewhere, where mypy does not see it.
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def publish_figure(trainer: Trainer, figure: Figure, path: Path, tag: str | None = None) -> None:
    """Write a figure as PNG, and to each logger that takes figures.

    Args:
        trainer: The trainer, which knows the loggers and the step.
        figure: The figure.
        path: The PNG file.
        tag: Name in the loggers; by default that of the file.
    """
    tag = path.stem if tag is None else tag
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, trainer.global_step)
        elif hasattr(logger, "log_image"):  # as Lightning's WandbLogger has it
            logger.log_image(tag, [str(path)], step=trainer.global_step)


def legible(values: Tensor) -> Tensor:
    """On the CPU; half precision in float32, which NumPy and other programs read."""
    values = values.cpu()
    return at_least_float32(values) if values.is_floating_point() else values


class StepTable:
    """A CSV file that grows as training goes on, each row with the ``step`` it belongs to.

    (What is written once, and never resumed, need not have the column ``step``.)

    A resumed run goes on with the file, without the rows that the interrupted run wrote after
    the checkpoint. A run that is not resumed takes a new name where the file is there.

    Args:
        path: The CSV file.
        columns: Names of the columns.
        resumed_at: The checkpoint's step; ``None`` for a run that is not resumed.
        is_written: Whether this process writes the file; if not, nothing happens.

    Raises:
        UsageError: If two columns have one name.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], resumed_at: int | None, is_written: bool = True
    ) -> None:
        self._is_written = is_written
        self.columns = list(columns)
        for column in self.columns:
            if self.columns.count(column) > 1:
                raise UsageError(
                    f"{path.name} would have two columns {column!r}: give the hyperparameter of"
                    " this name in the prior another one"
                )
        self.rows: list[Mapping[str, Value]] = []
        self.path = first_free(path) if resumed_at is None and is_written else path
        if resumed_at is not None and is_written and path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resumed_at]
            with replacing(path) as unfinished:
                self._write(unfinished, self.rows, "w")

    @property
    def last_step(self) -> int:
        """Step of the last row; -1 where there is none."""
        return int(self.rows[-1]["step"]) if self.rows else -1

    def append(self, rows: Iterable[Mapping[str, Value]]) -> None:
        """Add rows, in memory and in the file."""
        if not self._is_written:
            return
        new = list(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self.path, new, "a")
        self.rows += new

    def _write(self, path: Path, rows: Iterable[Mapping[str, Value]], mode: str) -> None:
        with path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows({key: _legible(value) for key, value in row.items()} for row in rows)


def _legible(value: Value) -> Value:
    """A number of float32 in its own digits: 0.05 for 0.05000000074505806."""
    is_single = isinstance(value, float) and float(np.float32(value)) == value
    return str(np.float32(value)) if is_single else value
