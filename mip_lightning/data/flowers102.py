"""Flowers102 through torchvision, read from a folder or downloaded."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from torchvision import datasets

from mip_lightning.data._hidden_files import is_empty
from mip_lightning.data.photographs import LabelledFiles, Photographs
from mip_lightning.errors import UsageError

FOLDER = "flowers-102"
"""torchvision's name of the folder in ``data_dir``."""


class Flowers102(Photographs):
    """Photographs of 102 classes of flowers, augmented as in the paper.

    The official ``train`` and ``val`` images are split anew, 80 to 20 %; the official ``test``
    images are for test. ``data_dir`` is in torchvision's layout: ``data_dir/flowers-102`` holds
    ``jpg``, ``imagelabels.mat`` and ``setid.mat``. A folder that is there is only read; images
    that the lists name and the folder lacks are left out, and their number is told. Where the
    folder is missing or empty, the files are downloaded to it.

    Source: paper, Section A.1; Nilsback and Zisserman, "Automated Flower Classification over a
    Large Number of Classes", 2008.

    Args:
        data_dir: Folder that holds, or will hold, ``flowers-102``.
        batch_size: Number of images in a batch (on each rank).
        image_size: Height and width of what the network gets.
        num_train: Keep only so many training images, drawn before the split; by default all.
        num_test: Keep only so many test images, drawn at random; by default all.
        validation_fraction: Share of the training images held out, in (0, 1), the same share of
            each class; of a class with one image, none.
        split_seed: Seed of the split and the draws, apart from the run's seed, so that replicas
            share them.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range, the folder holds other files, or the download
            fails.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 32,
        image_size: int = 256,
        num_train: int | None = None,
        num_test: int | None = None,
        validation_fraction: float = 0.2,
        split_seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size,
            image_size,
            num_train,
            num_test,
            validation_fraction,
            split_seed,
            drop_last,
            num_workers,
        )
        self.data_dir = Path(data_dir).expanduser()

    def prepare_data(self) -> None:
        """Download where nothing is there, on one process of each node."""
        if is_empty(self.data_dir):
            self._open("train", download=True)
        elif not (self.data_dir / FOLDER).is_dir():
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} holds other files and no {FOLDER}: name the"
                f" folder that holds {FOLDER}, or an empty or new one to download it to"
            )

    def load(self) -> tuple[LabelledFiles, LabelledFiles]:
        """Look which images are there."""
        files, named = {}, 0
        for split in ("train", "val", "test"):
            dataset = self._open(split, download=False)
            pairs = [dataset[index] for index in range(len(dataset))]
            named += len(dataset)
            files[split] = [(path, int(label)) for path, label in pairs if path.is_file()]
        self.label_names = dict(enumerate(datasets.Flowers102.classes))
        there = sum(map(len, files.values()))
        if there < named:
            rank_zero_info(
                f"Flowers102: {named - there:,} of {named:,} images are not in"
                f" {self.data_dir / FOLDER / 'jpg'} and are left out"
            )
        train, test = files["train"] + files["val"], files["test"]
        if not train or not test:
            raise UsageError(
                f"data_dir={str(self.data_dir)!r}: {FOLDER}/jpg holds {len(train)} training and"
                f" {len(test)} test images, and both are needed"
            )
        return tuple(  # type: ignore[return-value]  # of two
            LabelledFiles([path for path, _ in pairs], [label for _, label in pairs])
            for pairs in (train, test)
        )

    def _open(self, split: str, download: bool) -> datasets.Flowers102:
        try:
            # What it loads of an image is its path.
            return datasets.Flowers102(str(self.data_dir), split, download=download, loader=Path)
        except (RuntimeError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"data_dir={str(self.data_dir)!r}: Flowers102 could not be read or downloaded"
                f" ({reason}); name a folder with {FOLDER} in torchvision's layout"
            ) from error
