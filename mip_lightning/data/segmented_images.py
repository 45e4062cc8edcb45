"""SegmentedImages: images and their labels, for segmentation."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from mip_lightning.data._base import Part
from mip_lightning.data._subject_data import Sample, SubjectData, padded
from mip_lightning.data.subjects import Subject


class SegmentedDataset(Dataset[Sample]):
    """A sample for each subject.

    Each has ``image`` and ``labels`` ``(1, *S)``, ``name``, ``affine`` ``(4, 4)`` and ``size``
    ``(D,)``. A smaller image stands in the middle of zeros.

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

    def __getitem__(self, index: int) -> Sample:
        """The sample of this index."""
        return self._samples[index]


class SegmentedImages(SubjectData):
    """Images of people with the labels of their voxels.

    All images are read once and kept in memory. People, not images, are split into training,
    validation and test. Smaller images are padded with zeros to the largest; at ``batch_size=1``
    each keeps its own size.

    Args:
        source: Where the images come from; by default ``TemplateBrains``.
        batch_size: Number of images in a batch (on each rank).
        train_fraction: Share of people for training.
        validation_fraction: Share of people for validation; the rest is for test.
        split_seed: Seed of the split, apart from the run's seed, so that replicas share it.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.
        predict_on: The part that predictions are made for: ``train``, ``val`` or ``test``.

    Raises:
        UsageError: If a value is out of range.
    """

    @property
    def requirement(self) -> str:
        """A person."""
        return "each part takes a person"

    def dataset(
        self, subjects: Sequence[Subject], part: Part, size: Sequence[int] | None
    ) -> SegmentedDataset:
        """All images of a part."""
        return SegmentedDataset(subjects, size)
