"""InMemorySplits: the loaders of training, validation and test samples that lie in memory."""

from abc import ABC
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, default_collate
from typing_extensions import override

from mip_lightning.errors import UsageError

Split: TypeAlias = Literal["train", "val", "test"]


class InMemorySplits(LightningDataModule, ABC):
    """Batches of three splits, which ``setup`` of a subclass puts into ``splits``.

    Args:
        batch_size: Number of samples in a batch (on each rank).
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.
        predict_on: The split that predictions are made for: ``train``, ``val`` or ``test``.

    Raises:
        UsageError: If a value is out of range.
    """

    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)
    """Makes a batch of a list of samples."""

    def __init__(
        self, batch_size: int, drop_last: bool, num_workers: int, predict_on: Split = "test"
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: give 1 or more")
        if num_workers < 0:
            raise UsageError(f"num_workers={num_workers}: give 0 or more")
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.predict_on: Split = predict_on
        self.splits: dict[Split, Dataset[Any]] = {}

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", shuffle=True, drop_last=self.drop_last)

    @override
    def val_dataloader(self) -> DataLoader[Any] | list[None]:
        return self._loader("val")

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.predict_on)

    def _loader(
        self, split: Split, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[Any]:
        return DataLoader(
            self.splits[split],
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
