"""Public reports on volumes: what is measured, read and refused of other people's scans."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import trainer
from torch import nn

from mip_lightning import UsageError
from mip_lightning.data import Decathlon, SegmentedImages
from mip_lightning.data.subjects import Subject, Subjects, SubjectSource, read_subject
from mip_lightning.tasks import Segmentation


class Right(nn.Module):
    """Is always right of an image that shows its labels, whatever lies around it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = torch.cat([-(image - k).abs() for k in (1, 2, 3)], dim=1)
        return 9 * found + 0 * self.scale(image)


class TwoSizes(SubjectSource):
    def load(self) -> Subjects:
        generator = torch.Generator().manual_seed(0)
        subjects = []
        for number in range(12):
            size = (1, 16, 16) if number % 2 else (1, 9, 7)
            labels = torch.randint(3, size, generator=generator, dtype=torch.uint8)
            name = f"s{number}"
            subjects.append(Subject(name, name, "", labels + 1.0, labels, torch.eye(4)))
        return Subjects(subjects, {})


def test_what_is_measured_does_not_depend_on_the_batch_size():
    """nnU-Net issue 2818, DeepMedic issue 63: Dice and losses counted padding."""
    found = []
    for batch_size in (1, 2, 3):
        data = SegmentedImages(TwoSizes(), batch_size, train_fraction=0.3, validation_fraction=0.2)
        task = Segmentation(Right(), test_grid_size=1)
        (values,) = trainer().test(task, data, verbose=False)
        found.append((values["test_dice"], values["test_loss"]))
    assert found[0][0] == 1.0
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])


def save(path: Path, values: np.ndarray, affine: np.ndarray, slope: float | None = None) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0.0)
    nibabel.save(image, path)
    return path


class OnDisk(SubjectSource):
    def __init__(self, subjects: list[Subject]) -> None:
        self.subjects = subjects

    def load(self) -> Subjects:
        return Subjects(self.subjects, {})


def test_volumes_in_other_orders_are_refused_by_name():
    """GaNDLF issue 160, nnU-Net issue 2489: RAS and LAS were compared voxel by voxel."""
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    labels = (values > 0.5).astype(np.uint8)
    subjects = []
    for name, affine in (("ras", np.eye(4)), ("las", np.diag([-1.0, 1.0, 1.0, 1.0]))):
        paths = [
            save(Path(f"{name}_{k}.nii.gz"), v, affine) for k, v in enumerate((values, labels))
        ]
        subjects.append(read_subject(*paths, name, name))
    with pytest.raises(UsageError, match="ras lies as 'RAS', las as 'LAS'"):
        SegmentedImages(OnDisk(subjects)).setup("fit")


def test_two_subjects_of_one_name_are_refused():
    """MONAI issue 1854, GaNDLF issue 553: one overwrote the other's prediction."""
    image = torch.rand(1, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    twins = [Subject("scan", str(k), "", image, labels, torch.eye(4)) for k in range(2)]
    with pytest.raises(UsageError, match="2 subjects of the name 'scan'"):
        SegmentedImages(OnDisk(twins)).setup("fit")


def write_task(folder: Path, image: np.ndarray) -> Decathlon:
    task = folder / "Task04_Hippocampus"
    task.mkdir(parents=True)
    save(task / "a.nii.gz", image, np.eye(4))
    save(task / "b.nii.gz", np.zeros(image.shape, np.uint8), np.eye(4))
    listing = {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}], "labels": {"0": "none"}}
    # With a byte-order mark, as Windows writes it.
    (task / "dataset.json").write_text(json.dumps(listing), encoding="utf-8-sig")
    return Decathlon(str(folder))


@pytest.mark.parametrize("lesion", [0, 1, 100])
def test_a_sparse_volume_is_scaled(lesion):
    """MONAI issue 614: where both percentiles are 0, intensities stayed in [0, 1000]."""
    image = np.zeros((30, 30, 30), dtype=np.float32)
    image.flat[:lesion] = 1000.0 - np.arange(lesion)
    (subject,) = write_task(Path("data"), image).load().subjects
    expected = image / image.max() if lesion else image
    np.testing.assert_allclose(subject.image[0].numpy(), expected, rtol=1e-6)


def test_a_dense_volume_is_scaled_by_its_percentiles():
    image = np.random.default_rng(0).normal(100, 20, (12, 12, 12)).astype(np.float32)
    (subject,) = write_task(Path("data"), image).load().subjects
    low, high = np.percentile(image.astype(float), [0.5, 99.5])
    expected = np.clip((image.astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(subject.image[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("slope", "labels"), [(6 / 65535, [0, 6]), (1 / 255, range(7)), (0.1, range(7))]
)
def test_labels_that_are_stored_with_a_slope_are_whole(slope, labels):
    """spinalcordtoolbox issue 3229: 5.999999998603016 for 6."""
    expected = np.resize(np.array(labels, dtype=np.uint8), (2, 3, 4))
    stored = np.round(expected / slope).astype(np.uint16)
    path = save(Path("labels.nii.gz"), stored, np.eye(4), slope)
    read = np.asarray(nibabel.load(path).dataobj)
    assert not np.array_equal(read, expected)
    image = save(Path("image.nii.gz"), np.zeros(expected.shape, np.float32), np.eye(4))
    np.testing.assert_array_equal(read_subject(image, path, "a", "a").labels[0].numpy(), expected)


def test_a_label_that_is_not_whole_is_told_with_all_its_digits():
    """spinalcordtoolbox issue 3229: the message said 6 of a value that was not 6."""
    labels = save(Path("labels.nii.gz"), np.full((2, 2, 2), 5.999), np.eye(4))
    image = save(Path("image.nii.gz"), np.zeros((2, 2, 2), np.float32), np.eye(4))
    with pytest.raises(UsageError, match=r"labels.nii.gz holds the value 5\.999:"):
        read_subject(image, labels, "a", "a")
