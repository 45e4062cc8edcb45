"""PredictionWriter: what ``predict`` returns, in one file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from mip_lightning.callbacks._files import legible, run_folder, writes_files
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import replacing

SUFFIXES = (".csv", ".pt")


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of all batches and ranks, in the order of the data.

    A task's ``predict_step`` returns a mapping of names to tensors whose first dimension is the
    sample. A ``.csv`` file has a row for each sample and a column for each number (``name``, or
    ``name_0``, ``name_1``, ... where a sample has several); a ``.pt`` file holds the mapping.

    Args:
        path: The file, relative to the run's folder unless absolute.

    Raises:
        UsageError: If the suffix is neither ``.csv`` nor ``.pt``.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise UsageError(
                f"path={path!r}: predictions are written as {' or '.join(SUFFIXES)}, by suffix"
            )
        self._folder = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the run's folder, on all ranks.

        Raises:
            UsageError: If the file is there already.
        """
        super().setup(trainer, pl_module, stage)
        self._folder = run_folder(trainer)
        if stage == "predict" and (self._folder / self.path).exists():
            raise UsageError(f"path={str(self.path)!r} is there already: name another file")

    @override
    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Mapping[str, Tensor]],
        batch_indices: Sequence[Any],
    ) -> None:
        columns = {
            name: torch.cat([legible(batch[name]) for batch in predictions])
            for name in (predictions[0] if predictions else {})
        }
        num_samples = len(next(iter(columns.values()), ()))
        (indices_of_batches,) = batch_indices  # one data loader
        indices = torch.tensor([i for batch in indices_of_batches for i in batch])
        if len(indices) != num_samples:  # a stream of samples has no indices: keep its order
            indices = torch.arange(num_samples)
        parts: list[Any] = [(indices, columns)]
        if trainer.world_size > 1:
            parts *= trainer.world_size
            torch.distributed.all_gather_object(parts, (indices, columns))
        if not writes_files(trainer):
            return
        parts = [part for part in parts if part[1]]
        order = torch.cat([indices for indices, _ in parts]).argsort()
        merged = {
            name: torch.cat([columns[name] for _, columns in parts])[order] for name in parts[0][1]
        }
        path = self._folder / self.path
        with replacing(path) as unfinished:
            if path.suffix == ".pt":
                torch.save(merged, unfinished)
            else:
                _write_csv(unfinished, merged)
        rank_zero_info(f"Predictions of {len(order)} samples: {path}")


def _write_csv(path: Path, columns: Mapping[str, Tensor]) -> None:
    flat = {
        name: tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)
        for name, tensor in columns.items()
    }
    header = [
        name if tensor.shape[1] == 1 else f"{name}_{i}"
        for name, tensor in flat.items()
        for i in range(tensor.shape[1])
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *header])
        rows = zip(*(tensor.tolist() for tensor in flat.values()), strict=True)
        writer.writerows([i, *(v for part in row for v in part)] for i, row in enumerate(rows))
