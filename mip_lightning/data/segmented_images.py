"""SegmentedImages: images and their labels, for segmentation."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from mip_lightning.data.subject_data import Sample, SubjectData, padded
from mip_lightning.data.subjects import Subject


class SegmentedDataset(Dataset[Sample]):
    """A sample for each subject.

    Each has ``image`` and ``labels`` ``(1, *S)``, ``name``, ``affine`` ``(4, 4)`` and ``size``
    ``(D,)``. A smaller image stands in the middle of zeros.

    Args:
        subjects: The subjects.
        size: Size S to which images are padded.
    """

    def __init__(self, subjects: Sequence[Subject], size: Sequence[int]) -> None:
        self._samples: list[Sample] = [
            {
                "image": padded(subject.image, size),
                "labels": padded(subject.labels, size),
                "name": subject.name,
                "affine": subject.affine,
                "size": torch.tensor(subject.image.shape[1:]),
            }
            for subject in subjects
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """The sample of this index."""
        return self._samples[index]


class SegmentedImages(SubjectData):
    """Images of people with the labels of their voxels.

    All images are read once and kept in memory. People, not images, are split into training,
    validation and test; predictions are made for the test images.

    Args:
        source: Where the images come from; by default ``TemplateBrains``.
        batch_size: Number of images in a batch (on each rank).
        train_fraction: Share of people for training.
        validation_fraction: Share of people for validation; the rest is for test.
        split_seed: Seed of the split, apart from the run's seed, so that replicas share it.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range.
    """

    @property
    def needs(self) -> str:
        """A person."""
        return "each part takes a person"

    def dataset(
        self, subjects: Sequence[Subject], part: str, size: Sequence[int]
    ) -> SegmentedDataset:
        """All images of a part."""
        return SegmentedDataset(subjects, size)
