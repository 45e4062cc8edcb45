"""Subjects (images with labels): their sources, checks and splits."""

import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mip_lightning.data._base import Split
from mip_lightning.errors import UsageError

MAX_LABEL = 255

AFFINE_TOLERANCE = 1e-2
"""Largest difference between the affines of an image and its labels, in mm: headers round."""


UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,  # numpy's, for a negative size
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
)
"""What nibabel raises for a broken file."""


@dataclass(frozen=True)
class Subject:
    """One image with its labels.

    Attributes:
        name: Its name, unique in the source; files of predictions are named after it.
        person: Whose image it is: all images of a person fall in the same split.
        position: Where a slice was taken: only images of one position are paired.
        image: Intensities, about [0, 1], shape ``(1, *S)``.
        labels: A label for each voxel, 0 the background, shape ``(1, *S)``.
        affine: From voxels to millimeters, shape ``(4, 4)``; all images of a source have the
            same orientation.
    """

    name: str
    person: str
    position: str
    image: Float[Tensor, "1 *S"]
    labels: UInt8[Tensor, "1 *S"]
    affine: Float[Tensor, "4 4"]


@dataclass(frozen=True)
class Subjects:
    """All images of a source.

    Attributes:
        subjects: The images.
        label_names: Name of each label but the background.
    """

    subjects: Sequence[Subject]
    label_names: Mapping[int, str]


class SubjectSource(ABC):
    """Base class of sources of subjects."""

    def prepare(self) -> None:
        """Download missing files, on one process of each node; by default nothing."""
        return

    @property
    def description(self) -> str:
        """Its name in messages, with its folder if it has one."""
        return type(self).__name__

    @abstractmethod
    def load(self) -> Subjects:
        """All subjects, in memory.

        Raises:
            UsageError: If they cannot be read.
        """


def read_subject(
    image_path: Path, labels_path: Path, name: str, person: str, position: str = ""
) -> Subject:
    """Read an image and its labels from NIfTI files; axes of one voxel at the end are dropped.

    Raises:
        UsageError: If a file is missing or cannot be read, the image is not 2D or 3D or has voxels
            that are not numbers, or the labels have another shape or place or are not whole numbers
            in [0, 255].
    """
    image, affine = _read(image_path)
    labels, labels_affine = _read(labels_path)
    if image.ndim not in (2, 3):
        raise UsageError(f"{image_path} has shape {image.shape}: an image has 2 or 3 dimensions")
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise UsageError(f"{image_path} has {count} voxel(s) that are NaN or infinite: repair it")
    if labels.shape != image.shape:
        raise UsageError(
            f"{labels_path} has shape {labels.shape}, its image {image_path.name} {image.shape}:"
            " they must agree"
        )
    if not np.allclose(affine, labels_affine, atol=AFFINE_TOLERANCE):
        raise UsageError(
            f"{labels_path} has another affine than its image {image_path.name}: their voxels are"
            " not at the same place; resample the labels"
        )
    whole = np.round(labels)
    # A label that is stored as a multiple of the header's slope, a float32, comes out rounded.
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(labels), 1.0)
    wrong = (whole < 0) | (whole > MAX_LABEL) | ~(np.abs(labels - whole) <= rounding)
    if wrong.any():
        raise UsageError(
            f"{labels_path} holds the value {float(labels[wrong][0])!r}: labels are whole numbers"
            f" from 0 to {MAX_LABEL}"
        )
    return Subject(
        name,
        person,
        position,
        torch.from_numpy(image.astype(np.float32)).unsqueeze(0),
        torch.from_numpy(whole.astype(np.uint8)).unsqueeze(0),
        torch.from_numpy(np.asarray(affine, dtype=np.float32)),
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        file = nibabel.load(path)
        assert isinstance(file, nibabel.spatialimages.SpatialImage)
        kind = file.get_data_dtype()
        is_real = kind.kind in "biuf"
        values = np.asarray(file.dataobj, dtype=np.float64) if is_real else np.empty(0)
    except UNREADABLE as error:
        raise UsageError(f"{path} cannot be read as an image ({error})") from error
    if not is_real:
        raise UsageError(f"{path} holds values of type {kind}: an image has real numbers")
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    assert file.affine is not None
    return values, file.affine


def check_alike(subjects: Sequence[Subject], where: str) -> None:
    """Refuse subjects that cannot be compared or told apart; warn if voxels differ in size.

    Args:
        subjects: The images.
        where: Where they come from, for the message.

    Raises:
        UsageError: If there are none, a name is repeated or cannot name a folder, or numbers of
            dimensions or orientations differ.
    """
    if not subjects:
        raise UsageError(f"{where} holds no subject")
    _check_names([subject.name for subject in subjects], where)
    first = subjects[0]
    for subject in subjects:
        if subject.image.ndim != first.image.ndim:
            raise UsageError(
                f"{where} mixes 2D and 3D: {first.name} has shape {tuple(first.image.shape[1:])},"
                f" {subject.name} {tuple(subject.image.shape[1:])}"
            )
    _check_orientations(subjects, where)
    sizes = [subject.affine[:3, :3].norm(dim=0) for subject in subjects]
    for subject, size in zip(subjects, sizes, strict=True):
        if not torch.allclose(size, sizes[0], rtol=0.01):
            rank_zero_warn(
                f"{where} has voxels of {_millimeters(sizes[0])} in {first.name} and of"
                f" {_millimeters(size)} in {subject.name}, and displacements count voxels: resample"
                " the images where that matters"
            )
            break


def _check_names(names: Sequence[str], where: str) -> None:
    """Refuse names under which predictions cannot be kept apart."""
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UsageError(
                f"{where} has a subject of the name {name!r}, which cannot name a folder of"
                " predictions: give it another"
            )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{where} has {count} subjects of the name {name!r}, which cannot be told"
            " apart: give each a name of its own, e.g. rename the files"
        )


def _check_orientations(subjects: Sequence[Subject], where: str) -> None:
    """Refuse images with different orientations: they are compared voxel by voxel."""
    first, *others = subjects
    expected = _orientation(first, where)
    for other in others:
        found = _orientation(other, where)
        # An affine without length along an axis leaves the axis's direction unknown.
        if any(a != b and "?" not in (a, b) for a, b in zip(expected, found, strict=True)):
            way = "as_closest_canonical" if len(found) == 3 else "as_reoriented"
            raise UsageError(
                f"{where} mixes orientations: {first.name} lies as {expected!r}, {other.name} as"
                f" {found!r}, and voxels are compared as they lie: bring all images to one, e.g."
                f" with nibabel's {way}"
            )


def _orientation(subject: Subject, where: str) -> str:
    """Directions of the image's axes, as ``RAS`` (right, anterior, superior); ``?`` if unknown."""
    if not subject.affine.isfinite().all():
        raise UsageError(
            f"{where}: the affine of {subject.name} holds NaN or infinity, so that its orientation"
            " is not known: repair it"
        )
    codes = nibabel.aff2axcodes(subject.affine.double().numpy())
    return "".join(code or "?" for code in codes[: subject.image.ndim - 1])


def _millimeters(size: Float[Tensor, "3"]) -> str:
    return " x ".join(f"{length:.3g}" for length in size.tolist()) + " mm"


def split_by_person(
    subjects: Sequence[Subject], train_fraction: float, validation_fraction: float, seed: int
) -> dict[Split, list[Subject]]:
    """Split subjects so that all images of a person fall in the same split.

    Args:
        subjects: The images.
        train_fraction: Share of people for training.
        validation_fraction: Share of people for validation; the rest is for test.
        seed: Seed of the split.

    Returns:
        The subjects of ``train``, ``val`` and ``test``, in their order.
    """
    people = sorted({subject.person for subject in subjects})
    order = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    first = round(train_fraction * len(people))
    second = first + round(validation_fraction * len(people))
    splits: dict[Split, list[str]] = {
        "train": order[:first],
        "val": order[first:second],
        "test": order[second:],
    }
    return {
        split: [subject for subject in subjects if subject.person in set(members)]
        for split, members in splits.items()
    }
