"""SubjectData: reads and splits subjects, for registration and segmentation."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from typing_extensions import override

from mip_lightning.data._base import InMemorySplits, Split
from mip_lightning.data.subjects import Subject, SubjectSource, check_alike, split_by_person
from mip_lightning.data.template_brains import TemplateBrains
from mip_lightning.errors import UsageError
from mip_lightning.utilities.padding import centered

Sample = dict[str, Tensor | str]


def _with_plain_geometry(samples: list[Sample]) -> dict[str, Any]:
    """A batch as PyTorch makes it, but with affines and sizes in arrays of NumPy.

    A trainer in half precision rounds all tensors of a batch, which would move a written image; and
    to read a size that is on a GPU makes a training step wait.
    """
    keys = [key for key in samples[0] if key.endswith(("affine", "size"))]
    geometry = {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in keys}
    return {**default_collate(samples), **geometry}


class SubjectData(InMemorySplits):
    """Subjects of a source, read once and kept in memory, in batches.

    People, not images, are split into training, validation and test. Smaller images are padded with
    zeros to the largest; with ``batch_size=1`` each sample keeps its own size. A subclass overrides
    ``dataset``.

    Args:
        source: Where the images come from; by default ``TemplateBrains``.
        batch_size: Number of samples in a batch (on each rank).
        train_fraction: Share of people for training.
        validation_fraction: Share of people for validation; the rest is for test.
        split_seed: Seed of the split and of any choice of samples, apart from the run's seed, so
            that replicas share them.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.
        predict_on: The split that predictions are made for: ``train``, ``val`` or ``test``.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        source: SubjectSource | None = None,
        batch_size: int = 1,
        train_fraction: float = 0.64,
        validation_fraction: float = 0.16,
        split_seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        predict_on: Split = "test",
    ) -> None:
        super().__init__(batch_size, drop_last, num_workers, predict_on)
        test_fraction = 1.0 - train_fraction - validation_fraction
        if min(train_fraction, validation_fraction, test_fraction) <= 0.0:
            raise UsageError(
                f"train_fraction={train_fraction} and validation_fraction={validation_fraction}:"
                " give shares above 0 that leave some people for test"
            )
        self.source = TemplateBrains() if source is None else source
        self.train_fraction = train_fraction
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.label_names: dict[int, str] = {}

    collate = staticmethod(_with_plain_geometry)

    @abstractmethod
    def dataset(self, subjects: Sequence[Subject], split: Split, size: Sequence[int] | None) -> Any:
        """The samples of one split: a ``Dataset`` with a length.

        Args:
            subjects: Its subjects.
            split: ``train``, ``val`` or ``test``.
            size: The largest size of all images along each axis, to which samples are padded;
                ``None`` where each keeps its own.
        """

    @property
    @abstractmethod
    def requirement(self) -> str:
        """What a split needs at least, in words, for the error when it has no sample."""

    @override
    def prepare_data(self) -> None:
        self.source.prepare()

    @override
    def setup(self, stage: str) -> None:
        if self.splits:  # loaded by an earlier stage
            return
        loaded = self.source.load()
        where = self.source.description
        check_alike(loaded.subjects, where)
        self.label_names = dict(loaded.label_names)
        shapes = torch.tensor([subject.image.shape[1:] for subject in loaded.subjects])
        size = shapes.amax(dim=0).tolist() if self.batch_size > 1 else None
        people = split_by_person(
            loaded.subjects, self.train_fraction, self.validation_fraction, self.split_seed
        )
        datasets: dict[Split, Any] = {
            split: self.dataset(subjects, split, size) for split, subjects in people.items()
        }
        for split, dataset in datasets.items():
            if not len(dataset):
                names = ", ".join(subject.name for subject in loaded.subjects[:5])
                raise UsageError(
                    f"{where} holds {len(loaded.subjects)} subject(s) ({names}"
                    f"{', ...' if len(loaded.subjects) > 5 else ''}), and the split"
                    f" {split!r} gets {len(people[split])}: {self.requirement}; give more subjects"
                    " or other fractions"
                )
        # All at once: a split without samples leaves nothing behind.
        self.splits.update(datasets)


def padded(values: Tensor, size: Sequence[int]) -> Tensor:
    """Values ``(1, *S)`` in the middle of zeros of another size."""
    larger = values.new_zeros((1, *size))
    larger[:, *centered(size, values.shape[1:])] = values
    return larger
