"""Scale-space tasks from the command line: fit, test with its cost, select-gamma, export."""

import csv
import sys
from pathlib import Path

import nibabel
import pytest
import torch
import yaml
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mip_lightning import HyperModel, Uniform
from mip_lightning.cli.main import main
from mip_lightning.diagnostics.cost import PrimaryCost, pareto_front
from mip_lightning.networks import LeNet, ScaleSpaceUNet

CONFIG = ROOT / "tests" / "conf" / "scale_space.yaml"


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("scale_space") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mip-lightning"])
        main(["fit", "--config", str(CONFIG), "--run_dir", str(folder)])
    return folder


@pytest.fixture
def checkpoint(fitted) -> str:
    return str(fitted / "checkpoints" / "best.ckpt")


def test_a_run_draws_segmentations_and_logs_dice(fitted):
    assert (fitted / "val_segmentation_4.png").stat().st_size > 10_000
    last = next(row for row in reversed(rows(fitted / "csv" / "metrics.csv")) if row["val_dice"])
    assert 0.0 < float(last["val_dice"]) <= float(last["val_dice_best"]) < 1.0


def test_cost_rises_with_gamma_and_stands_beside_dice(checkpoint, tmp_path):
    main(["test", "--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "t")])
    cost = rows(tmp_path / "t" / "test_cost_curve.csv")
    flops = [float(row["flops"]) for row in cost]
    assert flops == sorted(flops)
    assert flops[0] < flops[-1]
    assert all(float(row["milliseconds"]) > 0 for row in cost)
    curve = rows(tmp_path / "t" / "test_gamma_curve.csv")
    assert [(row["gamma"], row["dice"]) for row in cost] == [(r["gamma"], r["dice"]) for r in curve]
    best = -1.0
    for row in cost:  # in the order of their FLOPs: on the front is who is better than all before
        assert (row["on_pareto_front"] == "1") == (float(row["dice"]) > best)
        best = max(best, float(row["dice"]))
    assert (tmp_path / "t" / "test_cost_curve.png").stat().st_size > 10_000


def test_gamma_is_selected_within_a_budget_and_then_predicted_and_exported_with(
    checkpoint, tmp_path
):
    path, size = tmp_path / "s.yaml", image_size(checkpoint, tmp_path)
    select = ["select-gamma", "--ckpt_path", checkpoint, "--grid_size", "4", "--path", str(path)]
    main([*select, "--max_flops", "1e6"])
    content = yaml.safe_load(path.read_text())
    assert content["max_flops"] == 1e6
    cost = PrimaryCost(
        HyperModel(ScaleSpaceUNet(1, 5, features=4, levels=3), Uniform(0, 0.5)),
        torch.rand(1, 1, *size),
    )
    assert cost.flops(torch.tensor([content["gamma"]])) <= 1e6
    path.unlink()
    with pytest.raises(SystemExit, match="max_flops=1000: the primary takes"):
        main([*select, "--max_flops", "1000"])
    assert not path.exists()
    main([*select])
    for format in ("state_dict", "torch_export"):
        file = str(tmp_path / format)
        main(["export", "--ckpt_path", checkpoint, "--gamma", str(path), "--format", format, "--path", file])  # fmt: skip  # noqa: E501
    network = ScaleSpaceUNet(1, 5, features=4, levels=3)
    network.load_state_dict(torch.load(tmp_path / "state_dict", weights_only=True))
    images = torch.rand(2, 1, *size)
    program = torch.export.load(tmp_path / "torch_export").module()
    gamma = yaml.safe_load(path.read_text())["gamma"]
    torch.testing.assert_close(program(images), network.eval()(images, gamma), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("format", ["state_dict", "torch_export"])
def test_an_export_says_that_a_state_dict_holds_no_gamma(format, checkpoint, tmp_path, caplog):
    main(["export", "--ckpt_path", checkpoint, "--gamma", "0.2", "--format", format,
          "--run_dir", str(tmp_path / "e")])  # fmt: skip
    says = "call ScaleSpaceUNet with gamma=0.2" in caplog.text
    assert says == (format == "state_dict")


def image_size(checkpoint: str, folder: Path) -> tuple[int, ...]:
    """Size of a test image, by predicting one."""
    main(["predict", "--ckpt_path", checkpoint, "--gamma", "0.25", "--run_dir", str(folder / "p")])
    path, *_ = sorted((folder / "p").glob("*/gamma_0.25_labels.nii.gz"))
    return nibabel.load(path).shape[:2]


@pytest.fixture
def painted(tmp_path) -> Path:
    """Ten red and ten blue images."""
    for number in range(10):
        for name, color in (("red", (200 + number, 0, 0)), ("blue", (0, 0, 200 + number))):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 24), color).save(path)
    return tmp_path / "images"


def test_photographs_are_classified_from_the_command_line(painted):
    config = str(ROOT / "tests" / "conf" / "classification.yaml")
    main(["fit", "--config", config, "--data.data_dir", str(painted), "--run_dir", "run"])
    checkpoint = "run/checkpoints/best.ckpt"
    main(["test", "--ckpt_path", checkpoint])
    accuracies = [float(row["accuracy"]) for row in rows("run/test/test_cost_curve.csv")]
    assert accuracies == [1.0] * 3  # red and blue are told apart at any size
    main(["predict", "--ckpt_path", checkpoint, "--gamma", "0.25"])
    predicted = [row["predicted"] for row in rows("run/predict/predictions.csv")]
    assert sorted(predicted) == ["0", "0", "1", "1"]
    main(["select-gamma", "--ckpt_path", checkpoint, "--grid_size", "2"])
    assert yaml.safe_load(Path("run/select-gamma/selected_gamma.yaml").read_text())["value"] == 1.0


def test_the_pareto_front_of_known_points():
    costs, values = [1, 2, 3, 4, 2, 5], [0.5, 0.7, 0.6, 0.9, 0.7, float("nan")]
    assert pareto_front(costs, values, True) == [True, True, False, True, True, False]
    assert pareto_front(costs, values, False) == [True, False, False, False, False, False]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_each_point_off_the_front_is_beaten_by_one_on_it(points):
    costs, values = zip(*points, strict=True)
    front = pareto_front(costs, values, True)
    on = [point for point, is_on in zip(points, front, strict=True) if is_on]
    assert len(set(on)) == len({cost for cost, _ in on}) == len({value for _, value in on})
    for cost, value in points:
        assert any(c <= cost and v >= value for c, v in on)


def test_a_network_that_asks_for_no_gamma_costs_the_same_at_each():
    cost = PrimaryCost(HyperModel(LeNet(), Uniform()), torch.rand(3, 1, 28, 28))
    by_hand = 2 * (25 * 6 * 28**2 + 25 * 6 * 16 * 14**2 + 9 * 16 * 32 * 49 + 9 * 32 * 64 * 49)
    by_hand += 2 * (256 * 84 + 84 * 10)
    assert cost.flops(torch.tensor([0.1])) == cost.flops(torch.tensor([0.9])) == by_hand
    assert all(taken > 0 for taken in cost.milliseconds(torch.rand(2, 1), rounds=2))


def test_a_cost_curve_of_an_unknown_metric_is_refused(checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="metric='accuracy': choose one of loss, dice"):
        main(["test", "--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "t"),
              "--trainer.callbacks", '[{"class_path": "CostCurve", "init_args": {"metric": "accuracy"}}]'])  # fmt: skip  # noqa: E501
