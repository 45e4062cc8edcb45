import dataclasses
import gzip
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import ROOT
from torch.utils.data import DataLoader

from mip_lightning import UsageError
from mip_lightning.data import (
    OASIS2D,
    Decathlon,
    ImagePairs,
    Subject,
    Subjects,
    SubjectSource,
    TemplateBrains,
)
from mip_lightning.data.subjects import check_alike

DATA = Path(os.environ.get("MIP_TEST_DATA", ROOT.parent / "shared" / "data"))


class Given(SubjectSource):
    """Subjects that a test names: person, position, size."""

    def __init__(self, *subjects: tuple[str, str, tuple[int, ...]]) -> None:
        self.subjects = subjects

    def load(self) -> Subjects:
        return Subjects(
            [
                Subject(
                    f"scan_{number}",
                    person,
                    position,
                    torch.full((1, *size), number + 1.0),
                    torch.full((1, *size), number + 1, dtype=torch.uint8),
                    torch.eye(4),
                )
                for number, (person, position, size) in enumerate(self.subjects)
            ],
            {},
        )


def ready(source: SubjectSource, **options) -> ImagePairs:
    data = ImagePairs(source, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def save_scan(root: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    affine = np.diag([-1.0, 2.0, 1.0, 1.0])
    save(root / name / "slice_norm.nii.gz", image.astype(np.float32), affine)
    save(root / name / "slice_seg24.nii.gz", labels, affine)


@pytest.fixture
def scans(tmp_path) -> Path:
    """Six people, one of them scanned twice, at two positions each."""
    generator = np.random.default_rng(0)
    for person in range(6):
        for scan in (1, 2) if person == 3 else (1,):
            for position in ("c091", "c103"):
                save_scan(
                    tmp_path,
                    f"OASIS_OAS1_000{person}_MR{scan}_{position}",
                    generator.random((6, 8, 1)),
                    generator.integers(0, 3, (6, 8, 1)).astype(np.uint8),
                )
    names = "0 Unknown 0 0 0 0\n1 Left-Thing 1 2 3 0\n\n2 Other 0 0 0 0\n"
    (tmp_path / "seg24_labels.txt").write_text(names)
    (tmp_path / "SOURCE.md").write_text("not a scan")
    return tmp_path


def test_pairs_join_different_people_at_one_position(scans):
    data = ready(OASIS2D(str(scans)), train_fraction=0.34, validation_fraction=0.33)
    assert data.label_names == {1: "Left-Thing", 2: "Other"}
    people: list[set[str]] = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        seen = set()
        for pair in loader:
            (moving,), (fixed,) = pair["moving_name"], pair["fixed_name"]
            assert moving[11:15] != fixed[11:15]
            assert moving[-4:] == fixed[-4:]
            assert pair["moving"].shape == (1, 1, 6, 8)
            assert pair["moving_labels"].dtype == torch.uint8
            assert pair["affine"][0].diagonal().tolist() == [-1.0, 2.0, 1.0, 1.0]
            seen |= {moving[11:15], fixed[11:15]}
        people.append(seen)
    assert sum(map(len, people)) == len(set.union(*people)) == 6


def test_the_names_of_labels_are_optional(scans):
    (scans / "seg24_labels.txt").unlink()
    assert OASIS2D(str(scans)).load().label_names == {}


def test_training_pairs_are_shuffled_and_evaluation_pairs_are_fixed():
    source = Given(*[(str(i), "", (4, 4)) for i in range(20)])
    data = ready(source, evaluation_pairs=5, train_fraction=0.4, validation_fraction=0.3)

    def order(loader) -> list[tuple[str, str]]:
        return [(p["moving_name"][0], p["fixed_name"][0]) for p in loader]

    train = data.train_dataloader()
    assert len(train) == 8 * 7
    assert order(train) != order(train)
    assert order(data.val_dataloader()) == order(data.val_dataloader())
    assert len(data.val_dataloader()) == len(data.test_dataloader()) == 5
    options = {"evaluation_pairs": 5, "train_fraction": 0.4, "validation_fraction": 0.3}
    again, other = ready(source, **options), ready(source, **options, split_seed=1)
    assert order(data.test_dataloader()) == order(again.test_dataloader())
    assert order(data.test_dataloader()) != order(other.test_dataloader())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_of_different_sizes_stand_in_the_middle_of_the_largest(batch_size):
    """At a batch size of 1 of the larger one of the pair."""
    sizes = [(4, 4), (3, 7), (4, 5), (2, 2), (4, 4), (4, 4)]
    data = ready(
        Given(*[(str(i), "", size) for i, size in enumerate(sizes)]),
        train_fraction=0.34,
        validation_fraction=0.33,
        batch_size=batch_size,
    )
    seen = 0
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for pair in DataLoader(loader.dataset, 1):
            number = int(pair["fixed_name"][0].removeprefix("scan_"))
            size, other = sizes[number], sizes[int(pair["moving_name"][0].removeprefix("scan_"))]
            full = (4, 7) if batch_size > 1 else tuple(map(max, zip(size, other, strict=True)))
            assert pair["fixed"].shape == pair["moving"].shape == (1, 1, *full)
            assert pair["size"].tolist() == [list(size)]
            before = [length // 2 - own // 2 for length, own in zip(full, size, strict=True)]
            inside = pair["fixed"][0, 0, before[0] :, before[1] :][: size[0], : size[1]]
            assert (inside == number + 1).all()
            assert pair["fixed"].sum() == inside.sum()
            assert pair["fixed_labels"].sum() == inside.sum()
            seen += 1
    assert seen == 6


def broken(change: str, root: Path) -> None:
    image, labels = np.full((6, 8, 1), 0.5), np.ones((6, 8, 1))
    match change:
        case "nan":
            image[1, 2] = np.nan
        case "shape":
            labels = labels[:5]
        case "label":
            labels[0] = 300
        case "fraction":
            labels[0] = 0.5
        case "volume":
            image, labels = np.ones((6, 8, 4)), np.ones((6, 8, 4))
        case "line":
            image, labels = np.ones(6), np.ones(6)
        case "place":
            path = root / "OASIS_OAS1_0001_MR1_c091" / "slice_seg24.nii.gz"
            save(path, np.ones((6, 8, 1), np.uint8), np.diag([1.0, 2.0, 1.0, 1.0]))
    save_scan(root, "OASIS_OAS1_0009_MR1_c091", image, labels.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nan", r"0009_MR1_c091/slice_norm.nii.gz has 1 voxel.* NaN"),
        ("shape", r"slice_seg24.nii.gz has shape \(5, 8\), its image slice_norm.nii.gz \(6, 8\)"),
        ("label", r"slice_seg24.nii.gz holds the value 300"),
        ("fraction", r"slice_seg24.nii.gz holds the value 0.5"),
        (
            "volume",
            r"OASIS2D in '.*' mixes 2D and 3D: .* \(6, 8\), OASIS_OAS1_0009_MR1_c091 \(6, 8, 4\)",
        ),
        ("line", r"0009_MR1_c091/slice_norm.nii.gz has shape \(6,\)"),
        ("place", r"0001_MR1_c091/slice_seg24.nii.gz has another affine than its image"),
    ],
)
def test_bad_scans_are_named(change, says, scans):
    broken(change, scans)
    with pytest.raises(UsageError, match=says):
        ready(OASIS2D(str(scans)))


def test_missing_and_unreadable_files_are_named(scans, tmp_path):
    folder = scans / "OASIS_OAS1_0001_MR1_c091"
    (folder / "slice_norm.nii.gz").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"0001_MR1_c091/slice_norm.nii.gz cannot be read"):
        OASIS2D(str(scans)).load()
    (folder / "slice_norm.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"0001_MR1_c091/slice_norm.nii.gz cannot be read"):
        OASIS2D(str(scans)).load()
    with pytest.raises(UsageError, match=r"0000_MR1_c091/slice_seg4.nii.gz cannot be read"):
        OASIS2D(str(scans), labels="seg4").load()
    with pytest.raises(UsageError, match=r"holds no folder OASIS_OAS1"):
        OASIS2D(str(tmp_path / "nowhere")).load()


def spoilt(kind: str) -> bytes:
    """A NIfTI file that is broken in one way."""
    values = np.ones((6, 8, 4), np.complex64 if kind == "complex" else np.float32)
    if kind == "color":
        values = np.ones((6, 8, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    content = bytearray(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())
    if kind == "type":
        content[70:72] = (9999).to_bytes(2, "little")  # nifti1.h: datatype
    if kind == "size":
        content[42:44] = (-6).to_bytes(2, "little", signed=True)  # nifti1.h: dim[1]
    packed = bytearray(gzip.compress(bytes(content)))
    if kind == "packing":
        packed[30:60] = b"\xff" * 30
    return bytes(packed[: len(packed) // 2] if kind == "half" else packed)


@pytest.mark.parametrize("kind", ["complex", "color", "type", "size", "packing", "half"])
def test_a_file_that_is_broken_anywhere_is_named(kind, scans):
    (scans / "OASIS_OAS1_0001_MR1_c091" / "slice_norm.nii.gz").write_bytes(spoilt(kind))
    with pytest.raises(UsageError, match=r"0001_MR1_c091/slice_norm.nii.gz (cannot|holds)"):
        OASIS2D(str(scans)).load()


def test_voxels_of_different_sizes_are_told():
    subjects = list(Given(*[(str(i), "", (4, 4)) for i in range(6)]).load().subjects)
    large = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))
    subjects[3] = dataclasses.replace(subjects[3], affine=large)
    with pytest.warns(UserWarning, match="1 x 1 x 1 mm in scan_0 and of 2 x 1 x 1 mm in scan_3"):
        check_alike(subjects, "here")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"1 Left\n5\n", r"seg24_labels.txt, line 2: '5' is not a number and a name"),
        (b"\xc2\xb2 Left\n", r"seg24_labels.txt, line 1"),
        (b"1 Left\n2 Left 0 0 0 0\n", r"line 2: a second label 'Left'"),
        (b"\xff\xfe\x00", r"seg24_labels.txt cannot be read"),
    ],
)
def test_a_list_of_labels_that_cannot_be_read_is_named(content, says, scans):
    (scans / "seg24_labels.txt").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        OASIS2D(str(scans)).load()


def test_names_of_labels_may_have_several_words(scans):
    (scans / "seg24_labels.txt").write_text(
        "# a comment\n1 Left Thalamus 1 2 3 0\n2 3rd Ventricle\n"
    )
    assert OASIS2D(str(scans)).load().label_names == {1: "Left Thalamus", 2: "3rd Ventricle"}


def test_the_last_smaller_batch_is_left_out_where_asked_for():
    source = Given(*[(str(i), "", (4, 4)) for i in range(9)])
    options = {"train_fraction": 0.34, "validation_fraction": 0.33, "batch_size": 4}
    assert [len(p["moving"]) for p in ready(source, **options).train_dataloader()] == [4, 2]
    data = ready(source, **options, drop_last=True)
    assert [len(p["moving"]) for p in data.train_dataloader()] == [4]
    assert [len(p["moving"]) for p in data.val_dataloader()] == [4, 2]


def test_one_subject_makes_no_pair():
    with pytest.raises(UsageError, match=r"Given holds 1 subject\(s\) \(scan_0\).*two people"):
        ready(Given(("a", "", (4, 4))))
    with pytest.raises(UsageError, match=r"Given holds no subject"):
        ready(Given())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"evaluation_pairs": 0}, "evaluation_pairs=0"),
        ({"train_fraction": 0.9, "validation_fraction": 0.2}, "train_fraction=0.9"),
        ({"validation_fraction": 0.0}, "validation_fraction=0.0"),
    ],
)
def test_impossible_options_of_pairs_are_named(options, says):
    with pytest.raises(UsageError, match=says):
        ImagePairs(**options)


def test_a_template_brain_depends_on_the_seed_and_its_number_alone():
    few = TemplateBrains(num_subjects=2, resolution=4).load()
    more = TemplateBrains(num_subjects=3, resolution=4).load()
    other = TemplateBrains(num_subjects=2, resolution=4, seed=1).load()
    for a, b in zip(few.subjects, more.subjects, strict=False):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.labels, b.labels)
    assert not torch.equal(few.subjects[0].image, few.subjects[1].image)
    assert not torch.equal(few.subjects[0].image, other.subjects[0].image)
    for subject in more.subjects:
        assert subject.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert 0.0 <= subject.image.min() <= subject.image.max() <= 1.0
        assert subject.image[subject.labels > 0].mean() > 0.3


def test_left_is_left_in_a_template_brain():
    (subject,) = TemplateBrains(num_subjects=1, spatial_dims=3, resolution=4).load().subjects
    assert subject.image.ndim == 4
    for left, right in ((1, 2), (3, 4)):
        means = []
        for label in (left, right):
            voxels = (subject.labels[0] == label).nonzero().float()
            means.append((subject.affine[0, :3] @ voxels.mean(dim=0)) + subject.affine[0, 3])
        assert means[0] < -5 < 5 < means[1]  # millimeters right of the middle


def test_a_task_of_the_decathlon_is_read_from_its_folder(tmp_path):
    folder = tmp_path / "Task04_Hippocampus"
    generator = np.random.default_rng(0)
    entries = []
    for number, size in enumerate([(5, 6, 7), (6, 5, 7), (5, 5, 5)]):
        image, labels = f"imagesTr/h_{number}.nii.gz", f"labelsTr/h_{number}.nii.gz"
        save(folder / image, 1000 * generator.random(size))
        save(folder / labels, generator.integers(0, 3, size).astype(np.uint8))
        entries.append({"image": f"./{image}", "label": f"./{labels}"})
    listing = {"labels": {"0": "background", "1": "Anterior"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(listing))
    source = Decathlon(str(tmp_path))
    source.prepare()  # nothing to download
    loaded = source.load()
    assert [subject.name for subject in loaded.subjects] == ["h_0", "h_1", "h_2"]
    assert loaded.label_names == {1: "Anterior"}
    assert loaded.subjects[1].image.shape == (1, 6, 5, 7)
    assert loaded.subjects[0].image.min() == 0.0
    assert loaded.subjects[0].image.max() == 1.0
    assert type(loaded.subjects[0].image) is torch.Tensor
    assert len(Decathlon(str(tmp_path), num_subjects=2).load().subjects) == 2
    for content in (
        "{}",
        "[]",
        '{"training": 3, "labels": {}}',
        '{"training": ["a"], "labels": {}}',
        '{"training": [{"image": "a"}], "labels": {"0": "b"}}',
        '{"training": [], "labels": {"one": "b"}}',
    ):
        (folder / "dataset.json").write_text(content)
        with pytest.raises(UsageError, match=r"dataset.json is not a list of the Decathlon"):
            source.load()
    (folder / "dataset.json").unlink()
    with pytest.raises(UsageError, match=r"dataset.json cannot be read"):
        source.load()
    with pytest.raises(UsageError, match=r"task='Task99': choose one of Task02"):
        Decathlon(str(tmp_path), task="Task99")
    with pytest.raises(UsageError, match=r"task='Task01_BrainTumour': choose one of Task02"):
        Decathlon(str(tmp_path), task="Task01_BrainTumour")  # four channels
    with pytest.raises(UsageError, match=r"num_subjects=0"):
        Decathlon(str(tmp_path), num_subjects=0)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file' is not a folder"):
        Decathlon(str(tmp_path / "file")).prepare()


def test_an_archive_that_was_left_behind_is_no_data_set(tmp_path, monkeypatch):
    (tmp_path / "Task04_Hippocampus.tar").write_bytes(b"half of it")
    asked = []
    monkeypatch.setattr("monai.apps.download_and_extract", lambda **options: asked.append(options))
    Decathlon(str(tmp_path)).prepare()
    assert asked[0]["filepath"] == tmp_path / "Task04_Hippocampus.tar"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set MIP_TEST_DATA")
def test_the_real_scans_are_read_and_split_by_person():
    data = ready(OASIS2D(str(DATA / "oasis-malf-2d-multi")))
    assert len(data.label_names) == 24
    pair = next(iter(data.test_dataloader()))
    assert pair["fixed"].shape == (1, 1, 160, 192)
    volumes = ready(Decathlon(str(DATA / "msd-hippocampus"), num_subjects=12))
    assert next(iter(volumes.test_dataloader()))["fixed"].ndim == 5
