"""Registration from the command line: fit, test, select-gamma, predict, export."""

import csv
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT

from mip_lightning.cli.main import main
from mip_lightning.networks import ConstantWidthUNet

CONFIG = ROOT / "tests" / "conf" / "registration.yaml"


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("registration") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mip-lightning"])
        main(["fit", "--config", str(CONFIG), "--run_dir", str(folder)])
    return folder


@pytest.fixture
def checkpoint(fitted) -> str:
    return str(fitted / "checkpoints" / "best.ckpt")


def test_a_run_draws_registrations_and_logs_dice_beside_that_before(fitted):
    assert (fitted / "val_registration_6.png").stat().st_size > 10_000
    logged = rows(fitted / "csv" / "metrics.csv")
    last = next(row for row in reversed(logged) if row["val_dice"])
    assert 0.0 < float(last["val_dice_before"]) < 1.0
    assert 0.0 <= float(last["val_dice_best_gamma"]) <= 1.0
    assert float(last["val_dice_best"]) >= float(last["val_dice"])


def test_each_labels_dice_is_reported_with_its_best_gamma(checkpoint, tmp_path, capsys):
    main(["test", "--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "t")])
    curve = rows(tmp_path / "t" / "test_gamma_curve.csv")
    assert [row["gamma"] for row in curve] == ["0.0", "0.5", "1.0"]
    labels = rows(tmp_path / "t" / "test_dice_by_label.csv")
    assert len(labels) == 4 * 3
    for label in "1234":
        mine = [row for row in labels if row["label"] == label]
        best = max(mine, key=lambda row: float(row["dice"]))
        assert [row["best"] for row in mine].count("1") == 1
        assert best["best"] == "1"
    assert {row["name"] for row in labels} >= {"Left-Grey-Matter", "Right-White-Matter"}
    assert (tmp_path / "t" / "test_dice_by_label.png").is_file()
    assert (tmp_path / "t" / "test_registration.png").is_file()


def test_a_gamma_is_selected_and_then_predicted_and_exported_with(checkpoint, fitted, tmp_path):
    selected = fitted / "select-gamma" / "selected_gamma.yaml"
    main(["select-gamma", "--ckpt_path", checkpoint, "--grid_size", "3"])
    content = yaml.safe_load(selected.read_text())
    assert content["by"] == "all"
    assert 0.0 <= content["gamma"] <= 1.0
    assert content["metric"] == "dice"
    main(
        [
            "export",
            "--ckpt_path",
            checkpoint,
            "--gamma",
            str(selected),
            "--run_dir",
            str(tmp_path / "e"),
        ]
    )
    (file,) = (tmp_path / "e").glob("ConstantWidthUNet_gamma_*.pt")
    assert ConstantWidthUNet(features=4, levels=3).load_state_dict(
        torch.load(file, weights_only=True)
    )
    main(
        [
            "predict",
            "--ckpt_path",
            checkpoint,
            "--gamma",
            str(selected),
            "--run_dir",
            str(tmp_path / "p"),
        ]
    )
    assert len(list((tmp_path / "p").glob("brain_*_to_brain_*/gamma_*_image.nii.gz"))) == 2


def test_a_gamma_is_selected_for_each_label_and_each_subject(checkpoint, fitted, capsys):
    for by, names in (("label", 4), ("subject", 2)):
        path = f"by_{by}.yaml"
        options = ["--by", by, "--path", path, "--grid_size", "2", "--tolerance", "0.5"]
        main(["select-gamma", "--ckpt_path", checkpoint, "--run_dir", str(fitted / by), *options])
        content = yaml.safe_load((fitted / by / path).read_text())
        assert len(content["gamma"]) == len(content["value"]) == names
        assert ("Left-Grey-Matter" in content["gamma"]) == (by == "label")
    chosen = str(fitted / "subject" / "by_subject.yaml")
    with pytest.raises(SystemExit, match=r"selected on other.*--data\.predict_on val"):
        main(["predict", "--ckpt_path", checkpoint, "--gamma", chosen])


def test_each_subject_is_predicted_at_the_gamma_that_was_selected_for_it(
    checkpoint, tmp_path, caplog
):
    chosen = tmp_path / "by_subject.yaml"
    select = ["select-gamma", "--ckpt_path", checkpoint, "--by", "subject", "--path", str(chosen)]
    main([*select, "--grid_size", "3"])
    selected = yaml.safe_load(chosen.read_text())["gamma"]
    folder = str(tmp_path / "p")
    main(["predict", "--ckpt_path", checkpoint, "--gamma", str(chosen), "--run_dir", folder,
          "--data.predict_on", "val"])  # fmt: skip
    found = {path.parent.name: path.name for path in Path(folder).glob("*/gamma_*_image.nii.gz")}
    assert found == {name: f"gamma_{gamma:.6g}_image.nii.gz" for name, gamma in selected.items()}
    assert all(f": {name}" in caplog.text or f", {name}" in caplog.text for name in selected)


def test_a_network_is_exported_at_the_gamma_of_each_label(checkpoint, tmp_path, caplog):
    chosen = tmp_path / "by_label.yaml"
    chosen.write_text("by: label\ngamma: {A: 0.25, B: 0.75, C: 0.25}")
    export = ["export", "--ckpt_path", checkpoint, "--gamma", str(chosen)]
    main([*export, "--run_dir", str(tmp_path / "e")])
    assert sorted(path.name for path in (tmp_path / "e").glob("*.pt")) == [
        "ConstantWidthUNet_gamma_0.25.pt",
        "ConstantWidthUNet_gamma_0.75.pt",
    ]
    assert "gamma = 0.25 (A, C)" in caplog.text
    with pytest.raises(SystemExit, match="holds 2 values: leave path out"):
        main([*export, "--path", "one.pt"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "speed"], "metric='speed': Registration has loss, dice"),
        (["--metric", "gradient_magnitude"], "has no better end"),
        (["--metric", "folded_share", "--by", "label"], "does not tell labels apart"),
        (["--grid_size", "1"], "grid_size=1"),
        (["--tolerance", "0"], "tolerance=0"),
    ],
)
def test_what_cannot_be_selected_is_refused(options, says, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=says):
        main(
            ["select-gamma", "--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "s"), *options]
        )


def test_predictions_are_nifti_files_in_the_space_of_the_fixed_image(checkpoint, tmp_path, capsys):
    main(
        [
            "predict",
            "--ckpt_path",
            checkpoint,
            "--gamma",
            "[0.0, 0.75]",
            "--run_dir",
            str(tmp_path / "p"),
        ]
    )
    assert len(list((tmp_path / "p").glob("*/*.nii.gz"))) == 2 * 2 * 3
    folder = sorted((tmp_path / "p").glob("brain_*"))[0]
    image, labels, displacement = (
        nibabel.load(folder / f"gamma_0.75_{name}.nii.gz")
        for name in ("image", "labels", "displacement")
    )
    assert image.ndim == 3
    assert labels.get_data_dtype() == np.uint8
    assert displacement.shape == (*image.shape[:2], 2, 1, 3)  # of a slice, a second plane
    assert displacement.header.get_intent()[0] == "vector"
    for file in (image, labels, displacement):
        assert np.abs(np.diag(file.affine)[0]) == 6.0  # the millimeters of the template
        assert file.header.get_xyzt_units()[0] == "mm"


def test_a_registration_asks_at_which_gamma_to_predict(checkpoint):
    with pytest.raises(SystemExit, match="give predict --gamma"):
        main(["predict", "--ckpt_path", checkpoint])
    with pytest.raises(SystemExit, match="outside"):
        main(["predict", "--ckpt_path", checkpoint, "--gamma", "1.5"])
