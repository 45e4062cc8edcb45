"""More public reports of these kinds, found by a search of GitHub's issues, and tried."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, output_at
from lightning.pytorch import seed_everything
from PIL import Image
from torch import nn

from mip_lightning import UsageError
from mip_lightning.cli.main import main
from mip_lightning.data import ImageFolders
from mip_lightning.data._image_files import read_image
from mip_lightning.data.subjects import Subject, check_alike, read_subject
from mip_lightning.tasks import Segmentation

QUICK = ROOT / "tests" / "conf" / "quick.yaml"


def test_a_truncated_image_is_refused_by_name():
    """pytorch/vision issue 138: "image file is truncated", and not which."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("whole.jpg")
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:900])
    with pytest.raises(UsageError, match=r"cut\.jpg cannot be read as an image"):
        read_image(Path("cut.jpg"))


def test_suffixes_in_capitals_are_images():
    """open-edge-platform/anomalib issue 3058, pytorch/vision issue 446."""
    for name in ("cat", "dog"):
        Path("data", name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (8, 8)).save(f"data/{name}/{index}.JPG", format="JPEG")
    data = ImageFolders("data")
    data.setup("fit")
    assert sum(len(data.splits[split]) for split in ("train", "val")) == 16


def test_a_photograph_in_printing_colors_is_read_in_color():
    """apple/turicreate issue 2527: a JPEG in CMYK."""
    Image.new("RGB", (16, 16), (250, 30, 30)).convert("CMYK").save("printed.jpg", quality=100)
    color = read_image(Path("printed.jpg")).float().mean(dim=(1, 2))
    assert color.tolist() == pytest.approx([250, 30, 30], abs=12)


def test_a_command_runs_from_python_whatever_the_process_was_called_with(monkeypatch):
    """Lightning issue 20722: a config.yaml could not be passed."""
    monkeypatch.setattr("sys.argv", ["notebook", "--f=kernel.json"])
    main(["fit", "--config", str(QUICK), "--trainer.fast_dev_run", "1"])


def test_a_number_that_yaml_takes_for_text_is_a_number():
    """Lightning issue 20337: it stayed text in the configuration that was saved."""
    config = yaml.safe_load(QUICK.read_text())
    config["trainer"]["max_epochs"] = "1"
    config["seed_everything"] = "1042"
    Path("text.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "text.yaml", "--run_dir", "mine"])
    saved = yaml.safe_load(Path("mine/config.yaml").read_text())
    assert (saved["trainer"]["max_epochs"], saved["seed_everything"]) == (1, 1042)


def test_parts_of_a_configuration_have_files_of_their_own():
    """Lightning issue 13094: ``--data data.yaml`` could not be read."""
    config = yaml.safe_load(QUICK.read_text())
    parts = {name: config.pop(name) for name in ("model", "data")}
    for name, part in {**parts, "rest": config}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(part))
    args = ["fit", "--config", "rest.yaml", "--model", "model.yaml", "--data", "data.yaml"]
    main([*args, "--trainer.fast_dev_run", "1"])


def test_a_default_that_a_subclass_passes_on_is_the_base_class_s():
    """Lightning issue 18616: the command line took another default for a keyword argument."""
    Path("data/a").mkdir(parents=True)
    args = ["--data", "ImageFolders", "--data.data_dir", "data", "--print_config"]
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["fit", "--config", str(QUICK), *args])
    options = yaml.safe_load(printed.getvalue())["data"]["init_args"]
    assert (options["batch_size"], options["image_size"]) == (32, 256)
    assert options["validation_fraction"] == 0.2


def test_a_file_of_several_volumes_is_refused_by_name():
    """Project-MONAI/MONAI issue 678: four sequences in one file came out as a tensor mismatch."""
    for name, shape in (("four", (4, 5, 6, 4)), ("labels", (4, 5, 6))):
        image = nibabel.Nifti1Image(np.zeros(shape, np.float32), np.eye(4))
        nibabel.save(image, f"{name}.nii.gz")
    with pytest.raises(UsageError, match=r"four\.nii\.gz has shape \(4, 5, 6, 4\)"):
        read_subject(Path("four.nii.gz"), Path("labels.nii.gz"), "a", "a")


def test_a_mask_of_0_and_255_is_refused_with_the_way_out():
    """Project-MONAI/MONAI issue 876: masks of 255 in place of 1 trained nothing."""
    seed_everything(0, verbose=False)
    task = Segmentation(nn.Conv2d(1, 2, 3, padding=1))
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    labels[..., :4] = 255
    with pytest.raises(UsageError, match="reach from 0 to 255, and the primary tells 2 classes"):
        output_at(task, {"image": torch.rand(1, 1, 8, 8), "labels": labels}, torch.tensor([[0.2]]))


def test_voxels_of_several_sizes_are_said():
    """uncbiag/mermaid issue 149: must both images have one spacing?"""
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    subjects = [
        Subject(name, name, "", torch.rand(1, 4, 4, 4), labels, torch.diag(torch.tensor(spacing)))
        for name, spacing in (("a", [1.0, 1.0, 1.0, 1.0]), ("b", [1.0, 1.0, 3.0, 1.0]))
    ]
    with pytest.warns(UserWarning, match="voxels of 1 x 1 x 1 mm in a and of 1 x 1 x 3 mm in b"):
        check_alike(subjects, "here")
