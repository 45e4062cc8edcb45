"""ImagePairs: pairs of images of different people, for registration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from typing_extensions import override

from mip_lightning.data._base import Split
from mip_lightning.data._subject_data import Sample, SubjectData, padded
from mip_lightning.data.subjects import Subject, SubjectSource
from mip_lightning.errors import UsageError


class PairDataset(Dataset[Sample]):
    """Ordered pairs of images of different people at the same position.

    Each item has ``moving`` and ``fixed`` ``(1, *S)``, their ``moving_labels`` and
    ``fixed_labels``, ``moving_name`` and ``fixed_name``, the fixed image's ``affine`` ``(4, 4)``
    and ``size`` ``(D,)``, ``moving_affine`` and ``moving_size``. Smaller images are padded with
    zeros.

    Args:
        subjects: The subjects.
        size: Size S to which images are padded; ``None`` for the larger one of each pair.
        num_pairs: Keep only this many pairs, chosen at random; by default all.
        seed: Seed of the choice.
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

    @override
    def __getitem__(self, index: int) -> Sample:
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
            "moving_affine": moving.affine,
            "size": torch.tensor(fixed.image.shape[1:]),
            "moving_size": torch.tensor(moving.image.shape[1:]),
        }


class ImagePairs(SubjectData):
    """Pairs of images of different people: all pairs in training, a fixed choice in evaluation.

    All images are read once and kept in memory. People, not images, are split into training,
    validation and test. An epoch takes all ordered training pairs in random order, or as many as
    ``trainer.limit_train_batches`` says. Smaller images are padded with zeros to the largest; with
    ``batch_size=1`` to the larger one of the pair.

    Args:
        source: Where the images come from; by default ``TemplateBrains``.
        evaluation_pairs: Largest number of pairs in validation, and in test.
        **kwargs: Arguments of ``SubjectData``.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        source: SubjectSource | None = None,
        evaluation_pairs: int = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, **kwargs)
        if evaluation_pairs < 1:
            raise UsageError(f"evaluation_pairs={evaluation_pairs}: give 1 or more")
        self.evaluation_pairs = evaluation_pairs

    @property
    @override
    def requirement(self) -> str:
        return "a pair takes two people of one slice position"

    @override
    def dataset(
        self, subjects: Sequence[Subject], split: Split, size: Sequence[int] | None
    ) -> PairDataset:
        num_pairs = None if split == "train" else self.evaluation_pairs
        return PairDataset(subjects, size, num_pairs, self.split_seed)
