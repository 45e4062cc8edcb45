"""ImageFolders: any photographs, a folder for each class."""

from pathlib import Path
from typing import Any

from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from typing_extensions import override

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

    @override
    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        found, _ = super().find_classes(directory)
        classes = [name for name in found if not is_hidden(name)]
        if not classes:
            raise FileNotFoundError(f"{directory} holds only hidden folders")
        return classes, {name: number for number, name in enumerate(classes)}


class ImageFolders(Photographs):
    """A folder of images for each class, augmented as the paper's photographs.

    ``data_dir/<class>/*.jpg``, or another format of torchvision's ``IMG_EXTENSIONS``; classes are
    numbered in alphabetical order. Hidden folders and files and those of operating systems
    (``.ipynb_checkpoints``, ``__MACOSX``, ``@eaDir``, ``._1.jpg``) are left out. A share of each
    class is for test; a class with one image keeps it for training.

    Args:
        data_dir: The folder that holds a folder for each class.
        test_fraction: Share of the images for test, in (0, 1), the same share of each class.
        **kwargs: Arguments of ``Photographs``.

    Raises:
        UsageError: If a value is out of range, or the folder does not hold such folders.
    """

    def __init__(self, data_dir: str, test_fraction: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < test_fraction < 1.0:
            raise UsageError(f"test_fraction={test_fraction}: give a share in (0, 1)")
        self.data_dir = Path(data_dir).expanduser()
        self.test_fraction = test_fraction

    @override
    def load(self) -> tuple[LabelledFiles, LabelledFiles]:
        try:
            found = _VisibleFolders(self.data_dir)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} does not hold a folder of images for each class"
                f" ({reason}); images end in {', '.join(IMG_EXTENSIONS)}"
            ) from error
        self.label_names = dict(enumerate(found.classes))
        files = LabelledFiles(
            [Path(path) for path, _ in found.samples], [label for _, label in found.samples]
        )
        return split_by_class(files, self.test_fraction, self.split_seed, "test_fraction")
