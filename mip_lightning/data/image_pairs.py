"""ImagePairs: pairs of images of different people, for registration."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from mip_lightning.data._base import Part
from mip_lightning.data._subject_data import Sample, SubjectData, padded
from mip_lightning.data.subjects import Subject, SubjectSource
from mip_lightning.errors import UsageError


class PairDataset(Dataset[Sample]):
    """Ordered pairs of subjects of one position and of different people.

    Each item has ``moving`` and ``fixed`` ``(1, *S)``, their ``moving_labels`` and
    ``fixed_labels``, ``moving_name`` and ``fixed_name``, and of the fixed image the ``affine``
    ``(4, 4)`` and its ``size`` ``(D,)``. A smaller image stands in the middle of zeros.

    Args:
        subjects: The subjects.
        size: Size S to which images are padded; ``None`` for the larger one of each pair.
        num_pairs: Keep so many pairs, drawn with ``seed``; by default all.
        seed: Seed of the draw.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        size: Sequence[int] | None,
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

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """The pair of this index."""
        moving, fixed = (self.subjects[number] for number in self.pairs[index])
        both = zip(moving.image.shape[1:], fixed.image.shape[1:], strict=True)
        size = [max(lengths) for lengths in both] if self.size is None else self.size
        return {
            "moving": padded(moving.image, size),
            "fixed": padded(fixed.image, size),
            "moving_labels": padded(moving.labels, size),
            "fixed_labels": padded(fixed.labels, size),
            "moving_name": moving.name,
            "fixed_name": fixed.name,
            "affine": fixed.affine,
            "size": torch.tensor(fixed.image.shape[1:]),
            "moving_size": torch.tensor(moving.image.shape[1:]),
        }


class ImagePairs(SubjectData):
    """Pairs of images of different people: random ones in training, fixed ones in evaluation.

    All images are read once and kept in memory. People, not images, are split into training,
    validation and test. An epoch takes all ordered training pairs in random order, or as many as
    ``trainer.limit_train_batches`` says. Smaller images are padded with zeros to the largest; at
    ``batch_size=1`` to the larger one of the pair.

    Args:
        source: Where the images come from; by default ``TemplateBrains``.
        batch_size: Number of pairs in a batch (on each rank).
        evaluation_pairs: Largest number of pairs in validation, and in test.
        train_fraction: Share of people for training.
        validation_fraction: Share of people for validation; the rest is for test.
        split_seed: Seed of the split and of the choice of evaluation pairs, apart from the run's
            seed, so that replicas share them.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.
        predict_on: The part that predictions are made for: ``train``, ``val`` or ``test``.

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
        drop_last: bool = False,
        num_workers: int = 0,
        predict_on: Part = "test",
    ) -> None:
        super().__init__(
            source,
            batch_size,
            train_fraction,
            validation_fraction,
            split_seed,
            drop_last,
            num_workers,
            predict_on,
        )
        if evaluation_pairs < 1:
            raise UsageError(f"evaluation_pairs={evaluation_pairs}: give 1 or more")
        self.evaluation_pairs = evaluation_pairs

    @property
    def requirement(self) -> str:
        """Two people."""
        return "a pair takes two people of one slice position"

    def dataset(
        self, subjects: Sequence[Subject], part: Part, size: Sequence[int] | None
    ) -> PairDataset:
        """All pairs in training, fixed ones in evaluation."""
        num_pairs = None if part == "train" else self.evaluation_pairs
        return PairDataset(subjects, size, num_pairs, self.split_seed)
