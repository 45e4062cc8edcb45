import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT

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
            assert torch.equal(pair["affine"][0].diag(), torch.tensor([-1.0, 2.0, 1.0, 1.0]))
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


def test_images_of_different_sizes_stand_in_the_middle_of_the_largest():
    sizes = [(4, 4), (3, 7), (4, 5), (2, 2), (4, 4), (4, 4)]
    data = ready(
        Given(*[(str(i), "", size) for i, size in enumerate(sizes)]),
        train_fraction=0.34,
        validation_fraction=0.33,
    )
    seen = 0
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for pair in loader:
            number = int(pair["fixed_name"][0].removeprefix("scan_"))
            size = sizes[number]
            assert pair["fixed"].shape == (1, 1, 4, 7)
            assert pair["size"].tolist() == [list(size)]
            before = [(4 - size[0]) // 2, (7 - size[1]) // 2]
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
    save_scan(root, "OASIS_OAS1_0009_MR1_c091", image, labels.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nan", r"0009_MR1_c091/slice_norm.nii.gz has 1 voxel.* NaN"),
        ("shape", r"slice_seg24.nii.gz has shape \(5, 8\), its image slice_norm.nii.gz \(6, 8\)"),
        ("label", r"slice_seg24.nii.gz holds the value 300"),
        ("fraction", r"slice_seg24.nii.gz holds the value 0.5"),
        ("volume", r"mixes 2D and 3D: .* \(6, 8\), OASIS_OAS1_0009_MR1_c091 \(6, 8, 4\)"),
        ("line", r"0009_MR1_c091/slice_norm.nii.gz has shape \(6,\)"),
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
    with pytest.raises(UsageError, match=r"seg4.nii.gz cannot be read|slice_norm"):
        OASIS2D(str(scans), labels="seg4").load()
    with pytest.raises(UsageError, match=r"holds no folder OASIS_OAS1"):
        OASIS2D(str(tmp_path / "nowhere")).load()


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
        assert means[0] < -5 < 5 < means[1]  # millimetres right of the middle


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
    assert len(Decathlon(str(tmp_path), num_subjects=2).load().subjects) == 2
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(UsageError, match=r"dataset.json lacks 'training'"):
        source.load()
    (folder / "dataset.json").unlink()
    with pytest.raises(UsageError, match=r"dataset.json cannot be read"):
        source.load()
    with pytest.raises(UsageError, match=r"task='Task99': choose one of Task01"):
        Decathlon(str(tmp_path), task="Task99")
    with pytest.raises(UsageError, match=r"num_subjects=0"):
        Decathlon(str(tmp_path), num_subjects=0)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set MIP_TEST_DATA")
def test_the_real_scans_are_read_and_split_by_person():
    data = ready(OASIS2D(str(DATA / "oasis-malf-2d-multi")))
    assert len(data.label_names) == 24
    pair = next(iter(data.test_dataloader()))
    assert pair["fixed"].shape == (1, 1, 160, 192)
    volumes = ready(Decathlon(str(DATA / "msd-hippocampus"), num_subjects=12))
    assert next(iter(volumes.test_dataloader()))["fixed"].ndim == 5
