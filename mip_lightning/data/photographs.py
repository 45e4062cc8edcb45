"""Photographs: image files with classes, decoded once, cropped at random in training."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from typing_extensions import override

from mip_lightning.data._base import InMemorySplits, Split
from mip_lightning.data._image_files import read_image
from mip_lightning.errors import UsageError

Sample: TypeAlias = tuple[Tensor, int]

CROP_AREA = (0.25, 1.0)
"""Share of the image's area that a random crop takes (paper, Section A.1)."""


@dataclass(frozen=True)
class LabelledFiles:
    """Image files with the number of their class.

    Attributes:
        paths: The files.
        labels: The class of each, from 0.
    """

    paths: Sequence[Path]
    labels: Sequence[int]


class _Photographs(Dataset[Sample]):
    """Images in memory, as bytes, each changed whenever it is taken; ``names`` are their files."""

    def __init__(
        self, images: Sequence[Tensor], files: LabelledFiles, change: v2.Transform
    ) -> None:
        self.names = [str(path) for path in files.paths]
        self._images = images
        self._labels = files.labels
        self._change = change

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return self._change(self._images[index]), self._labels[index]


class Photographs(InMemorySplits):
    """Classification of photographs, which are decoded once and kept in memory as bytes.

    Training takes a random square of 25 to 100 % of an image's area, resized to ``image_size``,
    flipped at random, its brightness, contrast and saturation changed by up to 25, 50 and 50 %.
    Evaluation takes the square in the middle. Values are in [0, 1]. A larger image than a crop can
    use is kept smaller, with a shorter side of ``2 * image_size``. Predictions are made for the
    test images. A subclass overrides ``load``.

    Photographs lie as they are displayed: turned and mirrored as their EXIF orientation says, and
    on white where they are transparent. Gray of 9 to 16 bits is scaled by its own range, so that
    its largest possible value is white; gray of 32 bits does not have such a range and is refused.

    Source: paper, Section A.1.

    Args:
        batch_size: Number of images in a batch (on each rank).
        image_size: Height and width of the network's input.
        num_train: Keep only this many training images, chosen at random before the split; by
            default all.
        num_test: Keep only this many test images, chosen at random; by default all.
        validation_fraction: Share of the training images held out, in (0, 1), the same share of
            each class; a class with one image keeps it for training.
        split_seed: Seed of the splits and of the choice of images, apart from the run's seed, so
            that replicas share them.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        image_size: int = 256,
        num_train: int | None = None,
        num_test: int | None = None,
        validation_fraction: float = 0.2,
        split_seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, drop_last, num_workers)
        for name, value in (
            ("image_size", image_size),
            ("num_train", num_train),
            ("num_test", num_test),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: give 1 or more")
        if not 0.0 < validation_fraction < 1.0:
            raise UsageError(f"validation_fraction={validation_fraction}: give a share in (0, 1)")
        self.image_size = image_size
        self.num_train = num_train
        self.num_test = num_test
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.label_names: dict[int, str] = {}
        self._files: dict[Split, LabelledFiles] = {}

    @abstractmethod
    def load(self) -> tuple[LabelledFiles, LabelledFiles]:
        """The training and the test files; sets ``label_names`` if classes have names."""

    @override
    def setup(self, stage: str) -> None:
        # Files are split once for all stages; only images that the stage needs are decoded.
        if not self._files:
            train, test = self.load()
            kept, held_out = split_by_class(
                self._subset(train, self.num_train),
                self.validation_fraction,
                self.split_seed,
                "validation_fraction",
            )
            self._files = {
                "train": kept,
                "val": held_out,
                "test": self._subset(test, self.num_test),
            }
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needed.get(stage, ("test",)):
            if split not in self.splits:
                self.splits[split] = self._decoded(split)

    def _subset(self, files: LabelledFiles, number: int | None) -> LabelledFiles:
        if number is None or number >= len(files.labels):
            return files
        generator = torch.Generator().manual_seed(self.split_seed)
        chosen = torch.randperm(len(files.labels), generator=generator)[:number].sort().values
        return _select(files, chosen.tolist())

    def _decoded(self, split: Split) -> _Photographs:
        files = self._files[split]
        if not files.paths:
            raise UsageError(f"{type(self).__name__} has no image for {split!r}")
        change, keep = (_augmentation if split == "train" else _center)(self.image_size)
        paths = track(
            files.paths,
            f"reading images for {split}",
            transient=True,
            disable=not self._shows_progress,
        )
        return _Photographs([keep(read_image(path)) for path in paths], files, change)

    @property
    def _shows_progress(self) -> bool:
        trainer = self.trainer
        return trainer is None or (
            trainer.is_global_zero and trainer.progress_bar_callback is not None
        )


def split_by_class(
    files: LabelledFiles, fraction: float, seed: int, name: str
) -> tuple[LabelledFiles, LabelledFiles]:
    """Hold out the same share of each class, and nothing of a class with one image.

    Args:
        files: The files.
        fraction: The share, in (0, 1).
        seed: Seed of the split.
        name: Name of the argument that gives the share, for the message.

    Returns:
        The files that are left, and those that are held out.

    Raises:
        UsageError: If there are too few images.
    """
    from sklearn.model_selection import train_test_split  # heavy

    counts = Counter(files.labels)
    alone = [i for i, label in enumerate(files.labels) if counts[label] == 1]
    others = [i for i, label in enumerate(files.labels) if counts[label] > 1]
    try:
        kept, held_out = train_test_split(
            others,
            test_size=fraction,
            stratify=[files.labels[i] for i in others],
            random_state=seed,
        )
    except ValueError as error:
        raise UsageError(
            f"{name}={fraction} of {len(files.labels)} images in {len(counts)} classes,"
            f" {len(alone)} of them with one image: {error}"
        ) from error
    return _select(files, sorted([*alone, *kept])), _select(files, sorted(held_out))


def _select(files: LabelledFiles, chosen: Sequence[int]) -> LabelledFiles:
    return LabelledFiles([files.paths[i] for i in chosen], [files.labels[i] for i in chosen])


def _augmentation(size: int) -> tuple[v2.Transform, v2.Transform]:
    """Transforms of a training image: each time it is taken, and once, when it is read."""
    each = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=CROP_AREA, ratio=(1.0, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.25, contrast=0.5, saturation=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return each, v2.Lambda(lambda image: _at_most(image, 2 * size))


def _center(size: int) -> tuple[v2.Transform, v2.Transform]:
    """The same two transforms of an evaluation image."""
    once = v2.Compose(
        [
            v2.Lambda(lambda image: v2.functional.center_crop(image, [min(image.shape[1:])] * 2)),
            v2.Resize([size, size], antialias=True),
        ]
    )
    return v2.ToDtype(torch.float32, scale=True), once


def _at_most(image: Tensor, side: int) -> Tensor:
    """The image, made smaller if its shorter side is longer than ``side``."""
    if min(image.shape[1:]) <= side:
        return image
    smaller: Tensor = v2.functional.resize(image, [side], antialias=True)
    return smaller
