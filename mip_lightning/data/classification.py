"""Classification data that fits in memory, with a stratified validation split."""

from abc import abstractmethod

import torch
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from mip_lightning.data._base import InMemorySplits
from mip_lightning.errors import UsageError


class InMemoryClassification(InMemorySplits):
    """Loads all samples once and holds out a share of the training samples for validation.

    A subclass overrides ``load``. Predictions are made for the test samples.

    Args:
        batch_size: Number of samples in a batch (on each rank).
        num_train: Keep only this many of the first training samples, before the split; by default
            all.
        validation_fraction: Share of the training samples held out, in [0, 1), the same share of
            each class.
        split_seed: Seed of the split, apart from the run's seed, so that replicas share the split.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_train: int | None = None,
        validation_fraction: float = 0.2,
        split_seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, drop_last, num_workers)
        if num_train is not None and num_train < 2:
            raise UsageError(f"num_train={num_train}: keep at least 2 samples")
        if not 0.0 <= validation_fraction < 1.0:
            raise UsageError(f"validation_fraction={validation_fraction}: give a share in [0, 1)")
        self.num_train = num_train
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed

    @abstractmethod
    def load(self) -> tuple[TensorDataset, TensorDataset]:
        """The training and the test samples: images ``(N, C, H, W)`` in [0, 1] and labels."""

    @override
    def setup(self, stage: str) -> None:
        if self.splits:  # loaded by an earlier stage
            return
        from sklearn.model_selection import train_test_split  # heavy

        train, test = self.load()
        images, labels = (tensor[: self.num_train] for tensor in train.tensors)
        kept, held_out = torch.arange(len(labels)), torch.arange(0)
        if self.validation_fraction:
            try:
                kept, held_out = train_test_split(
                    kept,
                    test_size=self.validation_fraction,
                    stratify=labels,
                    random_state=self.split_seed,
                )
            except ValueError as error:
                raise UsageError(
                    f"validation_fraction={self.validation_fraction} of {len(labels)} training"
                    f" samples: {error}"
                ) from error
        self.splits = {
            "train": TensorDataset(images[kept], labels[kept]),
            "val": TensorDataset(images[held_out], labels[held_out]),
            "test": test,
        }

    @override
    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]] | list[None]:
        # Lightning takes an empty list as no validation at all, and warns of an empty loader.
        return super().val_dataloader() if self.validation_fraction else []
