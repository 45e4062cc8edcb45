"""Flowers102 through torchvision, read from a folder or downloaded."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torchvision import datasets
from typing_extensions import override

from mip_lightning.data._hidden_files import is_empty
from mip_lightning.data.photographs import LabelledFiles, Photographs
from mip_lightning.errors import UsageError

FOLDER = "flowers-102"
"""torchvision's name of the folder in ``data_dir``."""


class Flowers102(Photographs):
    """Photographs of 102 classes of flowers, augmented as in the paper.

    The official ``train`` and ``val`` images are put together and split again, 80 to 20 %; the
    official ``test`` images are for test. ``data_dir`` is in torchvision's layout:
    ``data_dir/flowers-102`` holds ``jpg``, ``imagelabels.mat`` and ``setid.mat``. An existing
    folder is only read; listed images that it lacks are left out, and a message counts them. If
    the folder is missing or empty, the files are downloaded to it.

    Source: paper, Section A.1; Nilsback and Zisserman, "Automated Flower Classification over a
    Large Number of Classes", 2008.

    Args:
        data_dir: Folder that holds, or will hold, ``flowers-102``.
        **kwargs: Arguments of ``Photographs``.

    Raises:
        UsageError: If a value is out of range, the folder holds other files, or the download
            fails.
    """

    def __init__(self, data_dir: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = Path(data_dir).expanduser()

    @override
    def prepare_data(self) -> None:
        if is_empty(self.data_dir):
            self._open("train", download=True)
        elif not (self.data_dir / FOLDER).is_dir():
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} holds other files and no {FOLDER}: give the"
                f" folder that holds {FOLDER}, or an empty or new one to download it to"
            )

    @override
    def load(self) -> tuple[LabelledFiles, LabelledFiles]:
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
            # Path as the loader: an item of the dataset is the path of its image.
            return datasets.Flowers102(str(self.data_dir), split, download=download, loader=Path)
        except (RuntimeError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"data_dir={str(self.data_dir)!r}: Flowers102 could not be read or downloaded"
                f" ({reason}); give a folder with {FOLDER} in torchvision's layout"
            ) from error
