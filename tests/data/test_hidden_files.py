"""Hidden files and those of file managers are not data, wherever a folder is listed."""

import json
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mip_lightning import UsageError
from mip_lightning.data import MNIST, OASIS2D, Decathlon, Flowers102, ImageFolders

HIDDEN_FOLDERS = [".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN"]
HIDDEN_FILES = ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"]


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path, "PNG")


def litter(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in HIDDEN_FILES:
        (folder / name).write_bytes(b"no image")
    for name in HIDDEN_FOLDERS:
        paint(folder / name / "0.png")


@pytest.fixture
def folders(tmp_path) -> Path:
    """Two classes of six images each, in a folder that is hidden itself."""
    for number in range(6):
        for name in ("cat", "dog"):
            paint(tmp_path / ".cache" / "images" / name / f"{number}.png")
    return tmp_path / ".cache" / "images"


def made(folder: Path) -> ImageFolders:
    data = ImageFolders(str(folder), batch_size=4, image_size=8)
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


def test_hidden_folders_are_not_classes_and_hidden_files_not_images(folders):
    for folder in (folders, folders / "cat", folders / "dog" / "more"):
        litter(folder)
    data = made(folders)
    assert data.label_names == {0: "cat", 1: "dog"}
    files = [path for part in data._files.values() for path in part.paths]
    assert Counter(path.relative_to(folders).parts for path in files) == Counter(
        (name, f"{number}.png") for name in ("cat", "dog") for number in range(6)
    )
    labels = {
        (path.parent.name, label)
        for part in data._files.values()
        for path, label in zip(part.paths, part.labels, strict=True)
    }
    assert labels == {("cat", 0), ("dog", 1)}


def test_a_class_with_hidden_files_alone_is_empty(folders):
    litter(folders / "empty")
    with pytest.raises(UsageError, match=r"no valid file for the classes empty.*\.jpg"):
        made(folders)


def test_hidden_folders_alone_are_not_classes(tmp_path):
    litter(tmp_path / "images")
    with pytest.raises(UsageError, match=r"images' does not hold a folder of images"):
        made(tmp_path / "images")


def asked_to_download(monkeypatch, data) -> bool:
    asked = []
    monkeypatch.setattr(data, "_open", lambda *_, download: asked.append(download))
    data.prepare_data()
    return asked == [True]


@pytest.mark.parametrize("kind", [MNIST, Flowers102])
def test_a_folder_of_hidden_files_is_empty_and_downloaded_to(kind, tmp_path, monkeypatch):
    litter(tmp_path / "data")
    assert asked_to_download(monkeypatch, kind(str(tmp_path / "data")))
    assert asked_to_download(monkeypatch, kind(str(tmp_path / "nowhere")))
    (tmp_path / "data" / "mine.txt").touch()
    for other in (tmp_path / "data", tmp_path / "data" / "mine.txt"):
        with pytest.raises(UsageError, match="holds other files and no"):
            kind(str(other)).prepare_data()


def test_the_decathlon_is_downloaded_where_hidden_files_and_its_archive_lie(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("monai.apps.download_and_extract", lambda **options: asked.append(options))
    litter(tmp_path)
    Decathlon(str(tmp_path)).prepare()
    (tmp_path / "Task04_Hippocampus.tar").write_bytes(b"half of it")
    Decathlon(str(tmp_path)).prepare()
    assert len(asked) == 2
    (tmp_path / "mine.txt").touch()
    Decathlon(str(tmp_path)).prepare()
    assert len(asked) == 2


def test_hidden_volumes_in_the_list_of_the_decathlon_are_left_out(tmp_path):
    """As a list has them that was made of the files on disk, where a Mac has packed the archive."""
    folder = tmp_path / "Task04_Hippocampus"
    entries = []
    for name in ("._h_0", "h_0", "._h_1", "h_1"):
        for part in ("imagesTr", "labelsTr"):
            path = folder / part / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.startswith("."):
                path.write_bytes(b"\x00\x05\x16\x07")  # AppleDouble's first bytes
            else:
                nibabel.save(
                    nibabel.Nifti1Image(np.eye(4)[None].astype(np.float32), np.eye(4)), path
                )
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    entries.append({key: f"../Task04_Hippocampus/{path}" for key, path in entries[1].items()})
    listing = {"labels": {"0": "background", "1": "Anterior"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(listing))
    names = [subject.name for subject in Decathlon(str(tmp_path)).load().subjects]
    assert names == ["h_0", "h_1", "h_0"]
    few = Decathlon(str(tmp_path), num_subjects=2).load().subjects
    assert [subject.name for subject in few] == ["h_0", "h_1"]


def test_hidden_folders_beside_scans_are_not_scans(tmp_path):
    scan = tmp_path / "OASIS_OAS1_0001_MR1"
    for name in ("slice_norm", "slice_seg24"):
        scan.mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(np.ones((3, 4, 1), np.uint8), np.eye(4))
        nibabel.save(image, scan / f"{name}.nii.gz")
    litter(tmp_path)
    (tmp_path / f"._{scan.name}").mkdir()
    (subject,) = OASIS2D(str(tmp_path)).load().subjects
    assert subject.name == scan.name
