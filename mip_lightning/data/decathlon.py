"""Decathlon: volumes of the Medical Segmentation Decathlon, read from a folder or downloaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from mip_lightning.data._hidden_files import is_hidden, visible
from mip_lightning.data.subjects import Subject, Subjects, SubjectSource, read_subject
from mip_lightning.errors import UsageError

SEVERAL_CHANNELS = ("Task01_BrainTumour", "Task05_Prostate")
"""Tasks with several volumes per image."""

PERCENTILES = (0.5, 99.5)
"""The intensities of a volume that become 0 and 1."""


class Decathlon(SubjectSource):
    """The labeled volumes of one task, each of another person, with intensities in [0, 1].

    ``data_dir/<task>/dataset.json`` lists them; hidden files (``._x.nii.gz``) in it are left out.
    An existing folder is only read. If it is missing or empty, MONAI downloads the task to it.

    Source: Antonelli et al., "The Medical Segmentation Decathlon", 2022.

    Args:
        data_dir: Folder that holds, or will hold, the folder of the task.
        task: Name of a task with one volume per image.
        num_subjects: Read only this many of the first volumes; by default all.

    Raises:
        UsageError: If there is no such task, or ``num_subjects`` is below 1.
    """

    def __init__(
        self, data_dir: str, task: str = "Task04_Hippocampus", num_subjects: int | None = None
    ) -> None:
        from monai.apps import DecathlonDataset  # heavy: each command would wait for it

        tasks = sorted(DecathlonDataset.resource.keys() - SEVERAL_CHANNELS)
        if task not in tasks:
            raise UsageError(f"task={task!r}: choose one of {', '.join(tasks)}")
        if num_subjects is not None and num_subjects < 1:
            raise UsageError(f"num_subjects={num_subjects}: give 1 or more")
        self.data_dir = Path(data_dir).expanduser()
        self.task = task
        self.num_subjects = num_subjects

    @property
    @override
    def description(self) -> str:
        return f"{self.task} in {str(self.data_dir)!r}"

    @override
    def prepare(self) -> None:
        from monai.apps import DecathlonDataset, download_and_extract

        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise UsageError(f"data_dir={str(self.data_dir)!r} is not a folder")
        # MONAI checks and unpacks an archive that was downloaded before.
        archive = f"{self.task}.tar"
        if self.data_dir.exists() and any(p.name != archive for p in visible(self.data_dir)):
            return
        try:
            download_and_extract(
                url=DecathlonDataset.resource[self.task],
                filepath=self.data_dir / archive,
                output_dir=self.data_dir,
                hash_val=DecathlonDataset.md5[self.task],
            )
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"data_dir={str(self.data_dir)!r}: {self.task} could not be downloaded ({error});"
                " give a folder that holds it"
            ) from error

    @override
    def load(self) -> Subjects:
        folder = self.data_dir / self.task
        listing = self._listing(folder / "dataset.json")
        subjects = []
        entries = [
            entry for entry in listing["training"] if not is_hidden(Path(entry["image"]).name)
        ]
        for entry in entries[: self.num_subjects]:
            name = Path(entry["image"]).name.removesuffix(".gz").removesuffix(".nii")
            subject = read_subject(folder / entry["image"], folder / entry["label"], name, name)
            subjects.append(_scaled(subject))
        names = {int(label): str(name) for label, name in listing["labels"].items()}
        names.pop(0, None)
        return Subjects(subjects, names)

    def _listing(self, path: Path) -> dict[str, Any]:
        try:
            listing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(
                f"data_dir={str(self.data_dir)!r}: {path} cannot be read ({error}); give the folder"
                f" that holds {self.task}, or an empty or new one to download it to"
            ) from error
        if not _is_listing(listing):
            raise UsageError(
                f"{path} is not a list of the Decathlon: 'training' must list an 'image' and a"
                " 'label' each, 'labels' must map numbers to names"
            )
        return listing


def _is_listing(listing: Any) -> bool:
    if not isinstance(listing, dict):
        return False
    entries, labels = listing.get("training"), listing.get("labels")
    return (
        isinstance(entries, list)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("image"), str)
            and isinstance(entry.get("label"), str)
            for entry in entries
        )
        and isinstance(labels, dict)
        and all(label.isdecimal() for label in labels)
    )


def _scaled(subject: Subject) -> Subject:
    """Scale intensities to [0, 1] by their percentiles; values beyond are clipped.

    Where most voxels have one value, so that both percentiles are it, by the smallest and the
    largest intensity: MONAI's transform then leaves them as they are. An image of one value is 0.
    """
    values = subject.image.double().numpy()
    low, high = np.percentile(values, PERCENTILES)
    if not high > low:
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    image = torch.from_numpy(scaled.clip(0.0, 1.0).astype(np.float32))
    return dataclasses.replace(subject, image=image)
