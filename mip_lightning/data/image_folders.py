"""ImageFolders: any photographs, a folder for each class."""

from pathlib import Path

from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from mip_lightning.data._hidden_files import is_hidden
from mip_lightning.data.photographs import LabelledFiles, Photographs, split_by_class
from mip_lightning.errors import UsageError


class _VisibleFolders(datasets.ImageFolder):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's list of images, without hidden folders and files."""

    def __init__(self, folder: Path) -> None:
        def is_valid_file(path: str) -> bool:
            below = Path(path).relative_to(folder).parts
            return path.lower().endswith(IMG_EXTENSIONS) and not any(map(is_hidden, below))

        super().__init__(str(folder), is_valid_file=is_valid_file)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        found, _ = super().find_classes(directory)
        classes = [name for name in found if not is_hidden(name)]
        if not classes:
            raise FileNotFoundError(f"{directory} holds hidden folders alone")
        return classes, {name: number for number, name in enumerate(classes)}


class ImageFolders(Photographs):
    """A folder of images for each class, augmented as the paper's photographs.

    ``data_dir/<class>/*.jpg``, or another format of torchvision's ``IMG_EXTENSIONS``; classes are
    numbered by the alphabet of their names. Hidden folders and files are left out, and those of
    operating systems (``.ipynb_checkpoints``, ``__MACOSX``, ``@eaDir``, ``._1.jpg``). A share of
    each class is for test; of a class with one image, none. Images lie as they are displayed, on
    white where they are transparent; gray of up to 16 bits is scaled by its range.

    Args:
        data_dir: The folder of the classes' folders.
        batch_size: Number of images in a batch (on each rank).
        image_size: Height and width of what the network gets.
        num_train: Keep only so many training images, drawn before the split; by default all.
        num_test: Keep only so many test images, drawn at random; by default all.
        test_fraction: Share of the images for test, in (0, 1), the same share of each class.
        validation_fraction: Share of the other images held out, in (0, 1), the same share of
            each class; of a class with one image, none.
        split_seed: Seed of the splits and the draws, apart from the run's seed, so that replicas
            share them.
        drop_last: Leave out the last, smaller training batch.
        num_workers: Number of processes that load batches.

    Raises:
        UsageError: If a value is out of range, or the folder holds no such folders.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 32,
        image_size: int = 256,
        num_train: int | None = None,
        num_test: int | None = None,
        test_fraction: float = 0.2,
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
        if not 0.0 < test_fraction < 1.0:
            raise UsageError(f"test_fraction={test_fraction}: give a share in (0, 1)")
        self.data_dir = Path(data_dir).expanduser()
        self.test_fraction = test_fraction

    def load(self) -> tuple[LabelledFiles, LabelledFiles]:
        """List the files, and split off the test images."""
        try:
            found = _VisibleFolders(self.data_dir)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} is no folder of one folder of images for each"
                f" class ({reason}); images end in {', '.join(IMG_EXTENSIONS)}"
            ) from error
        self.label_names = dict(enumerate(found.classes))
        files = LabelledFiles(
            [Path(path) for path, _ in found.samples], [label for _, label in found.samples]
        )
        return split_by_class(files, self.test_fraction, self.split_seed, "test_fraction")
