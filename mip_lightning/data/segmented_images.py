"""SegmentedImages: images and their labels, for segmentation."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset
from typing_extensions import override

from mip_lightning.data._base import Split
from mip_lightning.data._subject_data import Sample, SubjectData, padded
from mip_lightning.data.subjects import Subject


class SegmentedDataset(Dataset[Sample]):
    """A sample for each subject.

    Each has ``image`` and ``labels`` ``(1, *S)``, ``name``, ``affine`` ``(4, 4)`` and ``size``
    ``(D,)``. Smaller images are padded with zeros.

    Args:
        subjects: The subjects.
        size: Size S to which images are padded; ``None`` for their own.
    """

    def __init__(self, subjects: Sequence[Subject], size: Sequence[int] | None) -> None:
        self._samples: list[Sample] = [
            {
                "image": padded(subject.image, size or subject.image.shape[1:]),
                "labels": padded(subject.labels, size or subject.image.shape[1:]),
                "name": subject.name,
                "affine": subject.affine,
                "size": torch.tensor(subject.image.shape[1:]),
            }
            for subject in subjects
        ]

    def __len__(self) -> int:
        return len(self._samples)

    @override
    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


class SegmentedImages(SubjectData):
    """Images of people with the labels of their voxels.

    All images are read once and kept in memory. People, not images, are split into training,
    validation and test. Smaller images are padded with zeros to the largest; with
    ``batch_size=1`` each keeps its own size.
    """

    @property
    @override
    def requirement(self) -> str:
        return "each split takes a person"

    @override
    def dataset(
        self, subjects: Sequence[Subject], split: Split, size: Sequence[int] | None
    ) -> SegmentedDataset:
        return SegmentedDataset(subjects, size)
