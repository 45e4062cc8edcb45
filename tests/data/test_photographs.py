"""Photographs by class: Flowers102 and any folders of images."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from PIL import Image

from mip_lightning import UsageError
from mip_lightning.data import Flowers102, ImageFolders
from mip_lightning.data.photographs import _augmentation


def paint(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Two classes of ten images each: red, and blue with a green rim outside the middle square."""
    for number in range(10):
        paint(tmp_path / "images" / "red" / f"{number}.png", (200 + number, 0, 0))
        path = tmp_path / "images" / "blue" / f"{number}.png"
        paint(path, (0, 255, 0))
        with Image.open(path) as image:
            image.paste((0, 0, 100 + number), (5, 0, 35, 30))
            image.save(path)
    return tmp_path / "images"


def made(folder: Path, **options) -> ImageFolders:
    data = ImageFolders(str(folder), batch_size=4, image_size=16, **options)
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


def labels(loader) -> list[int]:
    return [int(label) for _, batch in loader for label in batch]


def test_each_part_has_its_share_of_each_class_and_no_image_is_in_two(folders):
    data = made(folders)
    assert data.label_names == {0: "blue", 1: "red"}
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [Counter(labels(loader)) for loader in loaders] == [
        {0: 6, 1: 6} if part == 0 else {0: 2, 1: 2} for part in range(3)
    ]
    paths = [path for part in data._files.values() for path in part.paths]
    assert len(set(paths)) == len(paths) == 20


def test_evaluation_takes_the_square_in_the_middle(folders):
    for batch, classes in made(folders).test_dataloader():
        assert batch.shape[1:] == (3, 16, 16)
        assert batch.dtype == torch.float32
        for image, label in zip(batch, classes, strict=True):
            red, green, blue = image.flatten(1).mean(dim=1)
            assert green == 0  # the rim is cut off
            assert (float(red) > 0.7, float(blue) > 0.3) == (label == 1, label == 0)


def test_training_crops_differ_from_each_other_and_stay_in_the_unit_interval(folders):
    loader = made(folders).train_dataloader()
    torch.manual_seed(0)
    first, second = (torch.cat([images for images, _ in loader]) for _ in range(2))
    assert first.min() >= 0
    assert max(first.max(), second.max()) <= 1
    assert not torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


def test_training_images_are_changed_as_the_paper_says():
    transforms = {type(t).__name__: t for t in _augmentation(64)[0].transforms}
    crop, flip, color = (
        transforms[name] for name in ("RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter")
    )
    assert (tuple(crop.size), tuple(crop.scale)) == ((64, 64), (0.25, 1.0))
    assert tuple(crop.ratio) == (1.0, 1.0)
    assert flip.p == 0.5
    assert color.brightness == (0.75, 1.25)
    assert color.contrast == color.saturation == (0.5, 1.5)
    assert color.hue is None


def test_crops_take_a_quarter_to_the_whole_of_an_image():
    """Seen by the ramp in an image, of which a crop holds as much as its side is long."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(3, 64, 64)
    torch.manual_seed(0)
    crop = _augmentation(64)[0].transforms[0]
    spans = [float(image.max()) - float(image.min()) for image in (crop(ramp) for _ in range(300))]
    sides = torch.tensor(spans) / 255
    assert 0.4 < sides.min() < 0.55  # the side of a quarter of the area is a half
    assert sides.max() > 0.95


@pytest.mark.parametrize("images", [1, 2])
def test_a_class_with_one_image_stays_in_training(images, folders, tmp_path):
    for number in range(images):
        paint(folders / "yellow" / f"{number}.png", (255, 255, 0))
    data = made(folders)
    assert Counter(labels(data.train_dataloader()))[2] == 1
    assert 2 not in labels(data.val_dataloader())
    assert labels(data.test_dataloader()).count(2) == images - 1


def test_so_many_images_are_kept_as_are_asked_for(folders):
    data = made(folders, num_train=8, num_test=3)
    assert len(labels(data.test_dataloader())) == 3
    kept = [*labels(data.train_dataloader()), *labels(data.val_dataloader())]
    assert len(kept) == 8


def test_large_images_are_kept_no_larger_than_crops_need(folders, tmp_path):
    for number in range(20):
        paint(folders / "large" / f"{number}.png", (9, 9, 9), (300, 200))
    kept = made(folders).splits["train"]._images
    assert max(min(image.shape[1:]) for image in kept) == 32
    assert {tuple(image.shape[1:]) for image in kept} == {(30, 40), (32, 48)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"num_train": 0}, "num_train=0"),
        ({"validation_fraction": 0.0}, "validation_fraction=0.0"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
    ],
)
def test_impossible_values_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        ImageFolders("anywhere", **options)


def test_folders_that_are_not_there_or_hold_nothing_useful_are_named(folders, tmp_path):
    with pytest.raises(UsageError, match="nowhere' does not hold a folder of images"):
        made(tmp_path / "nowhere")
    (folders / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"broken\.png cannot be read as an image"):
        made(folders)
    paint(tmp_path / "one" / "red" / "0.png", (1, 1, 1))
    with pytest.raises(UsageError, match=r"test_fraction=0\.2 of 1 images in 1 classes"):
        made(tmp_path / "one")


@pytest.fixture
def real_flowers() -> Path:
    folder = Path(os.environ.get("MIP_TEST_DATA", ROOT.parent / "shared" / "data")) / "flowers102"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MIP_TEST_DATA")
    return folder


def test_flowers_that_the_folder_lacks_are_left_out_with_a_count(real_flowers, caplog):
    data = Flowers102(str(real_flowers), image_size=16, num_train=800, num_test=30)
    data.prepare_data()
    with caplog.at_level("INFO", "lightning.pytorch"):
        data.setup("fit")
    assert "2,645 of 8,189 images are not in" in caplog.text
    data.setup("test")
    sizes = {part: len(files.paths) for part, files in data._files.items()}
    assert sizes["test"] == 30
    assert sizes["train"] + sizes["val"] == 800
    assert data.label_names[0] == "pink primrose"
    images, classes = next(iter(data.test_dataloader()))
    assert images.shape[1:] == (3, 16, 16)
    assert 0 <= classes.min() <= classes.max() < 102


def test_a_folder_without_flowers_is_refused_and_left_alone(folders):
    with pytest.raises(UsageError, match="holds other files and no flowers-102"):
        Flowers102(str(folders)).prepare_data()
    (folders / "flowers-102").mkdir()
    with pytest.raises(UsageError, match="Flowers102 could not be read"):
        Flowers102(str(folders)).setup("fit")
