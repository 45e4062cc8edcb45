"""Subjects of one source lie alike and have names of their own, or are refused."""

import dataclasses
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import ROOT

from mip_lightning import UsageError
from mip_lightning.data import (
    OASIS2D,
    Decathlon,
    SegmentedImages,
    Subject,
    Subjects,
    SubjectSource,
    TemplateBrains,
)

DATA = Path(os.environ.get("MIP_TEST_DATA", ROOT.parent / "shared" / "data"))

RAS = torch.eye(4)
LAS = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))


class Given(SubjectSource):
    """Subjects that a test names."""

    def __init__(self, *subjects: Subject) -> None:
        self.subjects = subjects

    def load(self) -> Subjects:
        return Subjects(self.subjects, {})


def subject(name: str, affine: torch.Tensor = RAS, axes: int = 3) -> Subject:
    size = (1, *[4] * axes)
    return Subject(name, name, "", torch.zeros(size), torch.zeros(size, dtype=torch.uint8), affine)


def setup(*subjects: Subject) -> SegmentedImages:
    data = SegmentedImages(Given(*subjects), train_fraction=0.4, validation_fraction=0.3)
    data.setup("fit")
    return data


def test_volumes_of_different_orientation_are_refused_with_both_names():
    setup(subject("a", LAS), subject("b", LAS), subject("c", LAS))
    says = r"Given mixes orientations: a lies as 'RAS', c as 'LAS'.* as_closest_canonical"
    with pytest.raises(UsageError, match=says):
        setup(subject("a"), subject("b"), subject("c", LAS))


def test_axes_in_another_order_are_another_orientation():
    turned = RAS[:, [1, 0, 2, 3]]
    with pytest.raises(UsageError, match=r"a lies as 'RAS', c as 'ARS'"):
        setup(subject("a"), subject("b"), subject("c", turned))


def test_oblique_volumes_are_judged_by_their_nearest_axes():
    angle = torch.tensor(0.3)
    oblique = torch.eye(4)
    oblique[1:3, 1:3] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    setup(subject("a"), subject("b", oblique), subject("c"))
    with pytest.raises(UsageError, match=r"a lies as 'RAS', c as 'LAS'"):
        setup(subject("a"), subject("b"), subject("c", oblique @ LAS))


def test_slices_are_compared_by_their_two_axes():
    coronal = RAS[:, [0, 2, 1, 3]]
    flipped = coronal @ torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    behind = coronal @ torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))
    setup(subject("a", coronal, 2), subject("b", behind, 2), subject("c", coronal, 2))
    with pytest.raises(UsageError, match=r"a lies as 'RS', c as 'RI'"):
        setup(subject("a", coronal, 2), subject("b", behind, 2), subject("c", flipped, 2))
    silent = torch.diag(torch.tensor([1.0, 0.0, 0.0, 1.0]))  # tells nothing of the second axis
    with pytest.warns(UserWarning, match="1 x 0 x 0 mm in b"):
        setup(subject("a", coronal, 2), subject("b", silent, 2), subject("c", coronal, 2))


def test_an_affine_of_no_numbers_is_refused():
    with pytest.raises(UsageError, match=r"affine of c holds NaN"):
        setup(subject("a"), subject("b"), subject("c", torch.full((4, 4), torch.nan)))


@pytest.mark.parametrize("axes", [2, 3])
def test_template_brains_lie_alike_and_have_names_of_their_own(axes):
    data = SegmentedImages(TemplateBrains(num_subjects=8, spatial_dims=axes, resolution=8))
    data.setup("fit")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set MIP_TEST_DATA")
@pytest.mark.parametrize(
    ("source", "count"),
    [
        (OASIS2D(str(DATA / "oasis-malf-2d")), 35),
        (OASIS2D(str(DATA / "oasis-malf-2d-multi")), 245),
        (Decathlon(str(DATA / "msd-hippocampus")), 260),
    ],
    ids=["oasis", "oasis-multi", "hippocampus"],
)
def test_the_real_subjects_lie_alike_and_have_names_of_their_own(source, count):
    data = SegmentedImages(source)
    data.setup("fit")
    assert sum(len(split) for split in data.splits.values()) == count


def test_a_name_that_is_repeated_is_refused_with_its_count():
    with pytest.raises(UsageError, match=r"Given has 3 subjects of the name 'b'"):
        setup(*[subject(name) for name in "abcbb"])
    twin = dataclasses.replace(subject("b"), person="another")
    with pytest.raises(UsageError, match=r"Given has 2 subjects of the name 'b'"):
        setup(subject("a"), subject("b"), twin, subject("c"))
    setup(subject("b"), subject("B"), subject("c"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/b", "a\\b"])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(
        UsageError, match=r"Given has a subject of the name '.*cannot name a folder"
    ):
        setup(subject("a"), subject("c"), subject(name))


def test_files_of_one_name_in_two_folders_of_the_decathlon_are_refused(tmp_path):
    folder = tmp_path / "Task04_Hippocampus"
    entries = []
    for name in ("a/x", "b/x", "b/y"):
        for part in ("imagesTr", "labelsTr"):
            path = folder / part / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.eye(4))
            nibabel.save(image, path)
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    listing = {"labels": {"0": "background"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(listing))
    data = SegmentedImages(Decathlon(str(tmp_path)), train_fraction=0.4, validation_fraction=0.3)
    with pytest.raises(UsageError, match=r"Task04_Hippocampus in '.*' has 2 subjects .* 'x'"):
        data.setup("fit")
