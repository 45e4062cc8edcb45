"""OASIS2D: brain slices in the layout of the neurite-OASIS 2D data set."""

import re
from pathlib import Path
from typing import Literal

from typing_extensions import override

from mip_lightning.data.subjects import Subjects, SubjectSource, read_subject
from mip_lightning.errors import UsageError

FOLDER = re.compile(r"OASIS_OAS1_(?P<person>\d+)_MR\d+_?(?P<position>.*)")


LABEL = re.compile(r"(?P<label>[0-9]+)\s+(?P<name>\S.*?)(\s+[0-9]+){0,4}")


class OASIS2D(SubjectSource):
    """A folder for each scan, ``OASIS_OAS1_<person>_MR<scan>``, with an image and its labels.

    ``slice_norm.nii.gz`` is the image, ``slice_seg24.nii.gz`` or ``slice_seg4.nii.gz`` the labels.
    The text after the scan's number, as in ``OASIS_OAS1_0285_MR1_c109``, names the position of the
    slice. Names of labels are read from ``seg24_labels.txt`` or ``seg4_labels.txt`` if it exists:
    each line has a number, a name and up to four numbers of a color, as FreeSurfer's files have.

    Source: https://github.com/adalca/medical-datasets (neurite-OASIS, 414 scans).

    Args:
        data_dir: The folder that holds these folders.
        labels: Which labels to read: ``seg24`` or ``seg4``.
    """

    def __init__(self, data_dir: str, labels: Literal["seg24", "seg4"] = "seg24") -> None:
        self.data_dir = Path(data_dir).expanduser()
        self.labels = labels

    @property
    @override
    def description(self) -> str:
        return f"OASIS2D in {str(self.data_dir)!r}"

    @override
    def load(self) -> Subjects:
        scans = [
            (folder, match)
            for folder in sorted(self.data_dir.glob("*/"))
            if (match := FOLDER.fullmatch(folder.name))
        ]
        if not scans:
            raise UsageError(
                f"data_dir={str(self.data_dir)!r} holds no folder OASIS_OAS1_*_MR*: give the folder"
                " of the neurite-OASIS 2D data set"
            )
        subjects = [
            read_subject(
                folder / "slice_norm.nii.gz",
                folder / f"slice_{self.labels}.nii.gz",
                folder.name,
                match["person"],
                match["position"],
            )
            for folder, match in scans
        ]
        return Subjects(subjects, self._label_names())

    def _label_names(self) -> dict[int, str]:
        path = self.data_dir / f"{self.labels}_labels.txt"
        if not path.is_file():
            return {}
        names: dict[int, str] = {}
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read ({error})") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            entry = LABEL.fullmatch(line.strip())
            if entry is None:
                raise UsageError(f"{path}, line {number}: {line!r} is not a number and a name")
            if entry["name"] in names.values():
                raise UsageError(f"{path}, line {number}: a second label {entry['name']!r}")
            names[int(entry["label"])] = entry["name"]
        names.pop(0, None)
        return names
