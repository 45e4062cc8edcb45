"""ImagePairs: pairs of images of different people, for registration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mip_lightning.data.subjects import Subject, SubjectSource, check_alike, split_by_person
from mip_lightning.data.template_brains import TemplateBrains
from mip_lightning.errors import UsageError

PartOfPairs = dict[str, Tensor | str]


class PairDataset(Dataset[PartOfPairs]):
    """Ordered pairs of subjects of one position and of different people.

    Each item has ``moving`` and ``fixed`` ``(1, *S)``, their ``moving_labels`` and
    ``fixed_labels``, ``moving_name`` and ``fixed_name``, and of the fixed image the ``affine``
    ``(4, 4)`` and its ``size`` ``(D,)``. A smaller image stands in the middle of zeros.

    Args:
        subjects: The subjects.
        size: Size S to which images are padded.
        num_pairs: Keep so many pairs, drawn with ``seed``; by default all.
        seed: Seed of the draw.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        size: Sequence[int],
        num_pairs: int | None = None,
        seed: int = 0,
    ) -> None:
        self.subjects = subjects
        self.size = size
        pairs = [
            (i, j)
            for i, moving in enumerate(subjects)
            for j, fixed in enumerate(subjects)
            if moving.person != fixed.person and moving.position == fixed.position
        ]
        if num_pairs is not None and num_pairs < len(pairs):
            kept = np.random.default_rng(seed).permutation(len(pairs))[:num_pairs]
            pairs = [pairs[k] for k in sorted(kept)]
        self.pairs = pairs
        self._padded = [
            (padded(subject.image, size), padded(subject.labels, size)) for subject in subjects
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PartOfPairs:
        """The pair of this index."""
        i, j = self.pairs[index]
        (moving, moving_labels), (fixed, fixed_labels) = self._padded[i], self._padded[j]
        return {
            "moving": moving,
            "fixed": fixed,
            "moving_labels": moving_labels,
            "fixed_labels": fixed_labels,
            "moving_name": self.subjects[i].name,
            "fixed_name": self.subjects[j].name,
            "affine": self.subjects[j].affine,
            "size": torch.tensor(self.subjects[j].image.shape[1:]),
        }


def padded(values: Tensor, size: Sequence[int]) -> Tensor:
    """Values ``(1, *S)`` in the middle of zeros of another size.

    Where the difference is odd, one voxel less before than after.
    """
    before = [(new - old) // 2 for new, old in zip(size, values.shape[1:], strict=True)]
    after = [new - old - b for new, old, b in zip(size, values.shape[1:], before, strict=True)]
    margins = [m for pair in zip(before, after, strict=True) for m in pair]
    # PyTorch counts the last axis first.
    reverse = [m for axis in reversed(range(len(size))) for m in margins[2 * axis : 2 * axis + 2]]
    return F.pad(values, reverse) if any(reverse) else values


class ImagePairs(LightningDataModule):
    """Pairs of images of different people: random ones in training, fixed ones in evaluation.

    All images are read once and kept in memory. People, not images, are split into training,
    validation and test; predictions are made for the test pairs. An epoch takes all ordered
    training pairs in random order, or as many as ``trainer.limit_train_batches`` says.

    Args:
        source: Where the images come from; by default ``TemplateBrains``.
        batch_size: Number of pairs in a batch (on each rank).
        evaluation_pairs: Largest number of pairs in validation, and in test.
        train_fraction: Share of people for training.
        validation_fraction: Share of people for validation; the rest is for test.
        split_seed: Seed of the split and of the choice of evaluation pairs, apart from the run's
            seed, so that replicas share them.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        source: SubjectSource | None = None,
        batch_size: int = 1,
        evaluation_pairs: int = 50,
        train_fraction: float = 0.64,
        validation_fraction: float = 0.16,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("evaluation_pairs", evaluation_pairs)):
            if value < 1:
                raise UsageError(f"{name}={value}: give 1 or more")
        test_fraction = 1.0 - train_fraction - validation_fraction
        if min(train_fraction, validation_fraction, test_fraction) <= 0.0:
            raise UsageError(
                f"train_fraction={train_fraction} and validation_fraction={validation_fraction}:"
                " give shares above 0 that leave some people for test"
            )
        self.source = TemplateBrains() if source is None else source
        self.batch_size = batch_size
        self.evaluation_pairs = evaluation_pairs
        self.train_fraction = train_fraction
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.label_names: dict[int, str] = {}
        self._parts: dict[str, PairDataset] = {}

    def prepare_data(self) -> None:
        """Download what the source lacks, on one process of each node."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Load, split and pair, once for all stages.

        Raises:
            UsageError: If there are too few people for a pair in each part.
        """
        if self._parts:
            return
        loaded = self.source.load()
        where = type(self.source).__name__
        check_alike(loaded.subjects, where)
        self.label_names = dict(loaded.label_names)
        shapes = torch.tensor([subject.image.shape[1:] for subject in loaded.subjects])
        size = shapes.amax(dim=0).tolist()
        parts = split_by_person(
            loaded.subjects, self.train_fraction, self.validation_fraction, self.split_seed
        )
        pairs = {
            part: PairDataset(
                subjects,
                size,
                None if part == "train" else self.evaluation_pairs,
                self.split_seed,
            )
            for part, subjects in parts.items()
        }
        for part, dataset in pairs.items():
            if not len(dataset):
                names = ", ".join(subject.name for subject in loaded.subjects[:5])
                raise UsageError(
                    f"{where} holds {len(loaded.subjects)} subject(s) ({names}"
                    f"{', ...' if len(loaded.subjects) > 5 else ''}), of which"
                    f" {len(parts[part])} fall to {part!r}: a pair takes two people of one slice"
                    " position; give more, or other fractions"
                )
        self._parts = pairs

    def train_dataloader(self) -> DataLoader[PartOfPairs]:
        """Training pairs in random order."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[PartOfPairs]:
        """Validation pairs."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[PartOfPairs]:
        """Test pairs."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[PartOfPairs]:
        """Test pairs."""
        return self._loader("test")

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self._parts[part],
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
