"""MNIST through torchvision, read from a folder or downloaded."""

import shutil
import tempfile
from pathlib import Path

from torch.utils.data import TensorDataset
from torchvision import datasets

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
    (``.gz``) or not. A folder that is there is only read. Where it is missing or empty, the
    files are downloaded to it.

    Args:
        data_dir: Folder that holds, or will hold, ``MNIST/raw``.
        batch_size: Number of samples in a batch (on each rank).
        num_train: Keep only the first so many training samples, before the split; by default all.
        validation_fraction: Share of the training samples held out, in [0, 1), the same share of
            each class.
        split_seed: Seed of the split, apart from the run's seed, so that replicas share the split.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range, the folder holds other files, or the download
            fails.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 64,
        num_train: int | None = None,
        validation_fraction: float = 0.2,
        split_seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size, num_train, validation_fraction, split_seed, drop_last, num_workers
        )
        self.data_dir = Path(data_dir).expanduser()

    def prepare_data(self) -> None:
        """Download where nothing is there, on one process of each node."""
        if is_empty(self.data_dir):
            self._open(self.data_dir, download=True)
        elif not (self.data_dir / "MNIST" / "raw").is_dir():
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} holds other files and no MNIST/raw: name the"
                " folder that holds MNIST, or an empty or new one to download it to"
            )

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        """Read all images into memory."""
        raw = self.data_dir / "MNIST" / "raw"
        if all((raw / name).is_file() for name in FILES):
            return self._open(self.data_dir, download=False)
        # torchvision unpacks archives beside them; the user's folder stays as it is.
        with tempfile.TemporaryDirectory() as scratch:
            copies = Path(scratch) / "MNIST" / "raw"
            copies.mkdir(parents=True)
            for name in (f"{name}.gz" for name in FILES):
                if not (raw / name).is_file():
                    raise UsageError(
                        f"data_dir={str(self.data_dir)!r}: MNIST is not complete there, for"
                        f" MNIST/raw lacks {name}; name a folder with the four files"
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
                f" ({reason}); name a folder with the four files of MNIST in MNIST/raw"
            ) from error
        return _tensors(train), _tensors(test)


def _tensors(dataset: datasets.MNIST) -> TensorDataset:
    return TensorDataset(dataset.data.unsqueeze(1).float().div(255.0), dataset.targets)
