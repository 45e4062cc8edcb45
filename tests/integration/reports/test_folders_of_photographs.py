"""Public reports on folders of photographs."""

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import trainer
from PIL import Image

from mip_lightning import UsageError
from mip_lightning.callbacks import PredictionWriter
from mip_lightning.cli.main import main
from mip_lightning.data import ImageFolders
from mip_lightning.data._image_files import read_image
from mip_lightning.networks import LeNet
from mip_lightning.priors import Uniform
from mip_lightning.tasks import BayesianClassification


def write_folders(folder: Path, classes: tuple[str, ...], number: int = 10) -> Path:
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{index}.png")
    return folder


def test_gray_of_16_bits_keeps_its_levels():
    """Pillow issues 3011 and 5991: it came out 98 % white."""
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save("gray.png")
    expected = np.round(levels / 257).astype(int)
    found = read_image(Path("gray.png")).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


def test_a_hidden_folder_is_not_a_class():
    """torchvision issue 2831: ``.ipynb_checkpoints`` became class 0 and moved all labels."""
    write_folders(Path("data"), (".ipynb_checkpoints", "__MACOSX", "cat", "dog"))
    data = ImageFolders("data")
    data.setup("fit")
    assert data.label_names == {0: "cat", 1: "dog"}


def test_an_image_beyond_pillows_limit_is_refused_by_name(monkeypatch):
    """Pillow calls it a decompression bomb."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (9, 9)).save("bomb.png")
    with pytest.raises(UsageError, match=r"bomb\.png cannot be read"):
        read_image(Path("bomb.png"))


def test_predictions_name_the_file_and_its_class():
    """Which row belongs to which file could not be told."""
    write_folders(Path("data"), ("cat", "dog"))
    data = ImageFolders("data", image_size=8, batch_size=3)
    task = BayesianClassification(LeNet(2, in_channels=3), Uniform(0, 1), ensemble_size=2)
    writer = PredictionWriter("p.csv")
    trainer(callbacks=[writer], default_root_dir=".").predict(task, datamodule=data)
    with Path("p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        assert Path(row["file"]).is_file()
        assert Path(row["file"]).parent.name == row["label_name"]
        assert row["label_name"] == {"0": "cat", "1": "dog"}[row["label"]]
        assert row["predicted_name"] == {"0": "cat", "1": "dog"}[row["predicted"]]


def test_a_folder_without_classes_is_refused_in_one_line(capsys):
    """torchvision issue 446: images that are not in subfolders."""
    write_folders(Path("data"), ("only",))
    with pytest.raises(SystemExit) as exit_info:
        main(
            [
                "fit", "--model", "BayesianClassification", "--model.primary", "LeNet",
                "--model.primary.num_classes", "2", "--model.prior", "Uniform",
                "--data", "ImageFolders", "--data.data_dir", "data/only",
                "--trainer.max_epochs", "1",
            ]
        )  # fmt: skip
    assert "does not hold a folder of images for each class" in str(exit_info.value.code)
