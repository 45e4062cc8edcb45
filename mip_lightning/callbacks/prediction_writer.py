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

CLASSES = ("label", "predicted")
"""Columns that hold numbers of classes."""


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of all batches and ranks, in the order of the data.

    A task's ``predict_step`` returns a mapping of names to tensors whose first dimension is the
    sample. A ``.csv`` file has a row for each sample and a column for each number (``name``, or
    ``name_0``, ``name_1``, ... where a sample has several); a ``.pt`` file holds the mapping. A
    first column ``file`` names each sample where the dataset has ``names``. Where labels have
    names, ``label_name`` and ``predicted_name`` stand beside ``label`` and ``predicted``.

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
        is_stream = len(indices) != num_samples
        if is_stream:  # its samples have no indices: keep their order
            indices = torch.arange(num_samples)
        parts: list[Any] = [(indices, columns)]
        names = getattr(getattr(trainer.predict_dataloaders, "dataset", None), "names", None)
        if trainer.world_size > 1:
            parts *= trainer.world_size
            torch.distributed.all_gather_object(parts, (indices, columns))
        if not writes_files(trainer):
            return
        parts = [part for part in parts if part[1]]
        places, order = torch.cat([indices for indices, _ in parts]).sort()
        merged: dict[str, Any] = {
            name: torch.cat([columns[name] for _, columns in parts])[order] for name in parts[0][1]
        }
        merged |= _names_of_classes(merged, getattr(pl_module, "label_names", {}))
        if names is not None and not is_stream:
            merged = {"file": [names[place] for place in places.tolist()], **merged}
        path = self._folder / self.path
        with replacing(path) as unfinished:
            if path.suffix == ".pt":
                torch.save(merged, unfinished)
            else:
                _write_csv(unfinished, merged)
        rank_zero_info(f"Predictions of {len(order)} samples: {path}")


def _names_of_classes(
    columns: Mapping[str, Tensor], label_names: Mapping[int, str]
) -> dict[str, list[str]]:
    """What the numbers of classes stand for, where that is known."""
    if not label_names:
        return {}
    return {
        f"{name}_name": [label_names.get(label, "") for label in columns[name].tolist()]
        for name in CLASSES
        if name in columns and columns[name].ndim == 1
    }


def _write_csv(path: Path, columns: Mapping[str, Tensor | list[str]]) -> None:
    header, cells = ["sample"], []
    for name, values in columns.items():
        if isinstance(values, list):
            header.append(name)
            cells.append([[value] for value in values])
            continue
        flat = values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)
        count = flat.shape[1]
        header += [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        cells.append(flat.tolist())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        rows = zip(*cells, strict=True)
        writer.writerows([i, *(v for part in row for v in part)] for i, row in enumerate(rows))
