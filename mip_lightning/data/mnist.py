"""MNIST through torchvision, read from a folder or downloaded."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch.utils.data import TensorDataset
from torchvision import datasets
from typing_extensions import override

from mip_lightning.data._hidden_files import is_empty
from mip_lightning.data.classification import InMemoryClassification
from mip_lightning.errors import UsageError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class MNIST(InMemoryClassification):
    """Images of 1 x 28 x 28 pixels in [0, 1], ten classes, with the official test split.

    ``data_dir`` is in torchvision's layout: ``data_dir/MNIST/raw`` holds the four files, packed
    (``.gz``) or not. An existing folder is only read. If it is missing or empty, the files are
    downloaded to it.

    Args:
        data_dir: Folder that holds, or will hold, ``MNIST/raw``.
        **kwargs: Arguments of ``InMemoryClassification``.

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
            self._open(self.data_dir, download=True)
        elif not (self.data_dir / "MNIST" / "raw").is_dir():
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} holds other files and no MNIST/raw: give the"
                " folder that holds MNIST, or an empty or new one to download it to"
            )

    @override
    def load(self) -> tuple[TensorDataset, TensorDataset]:
        raw = self.data_dir / "MNIST" / "raw"
        if all((raw / name).is_file() for name in FILES):
            return self._open(self.data_dir, download=False)
        # torchvision unpacks archives where they lie: the user's folder must stay as it is.
        with tempfile.TemporaryDirectory() as scratch:
            copies = Path(scratch) / "MNIST" / "raw"
            copies.mkdir(parents=True)
            for name in (f"{name}.gz" for name in FILES):
                if not (raw / name).is_file():
                    raise UsageError(
                        f"data_dir={str(self.data_dir)!r}: MNIST is not complete there:"
                        f" MNIST/raw lacks {name}; give a folder with the four files"
                    )
                shutil.copyfile(raw / name, copies / name)
            return self._open(Path(scratch), download=True)

    def _open(self, folder: Path, download: bool) -> tuple[TensorDataset, TensorDataset]:
        try:
            train, test = (
                datasets.MNIST(str(folder), train=train, download=download)
                for train in (True, False)
            )
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"data_dir={str(self.data_dir)!r}: MNIST could not be read or downloaded"
                f" ({reason}); give a folder with the four files of MNIST in MNIST/raw"
            ) from error
        return _tensors(train), _tensors(test)


def _tensors(dataset: datasets.MNIST) -> TensorDataset:
    return TensorDataset(dataset.data.unsqueeze(1).float().div(255.0), dataset.targets)
