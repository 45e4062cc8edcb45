"""Numbers that are not finite: said, never the best, and never evaluated."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, Denoising, loader, trainer
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mip_lightning import HyperLightningModule, ThetaConfig, Uniform, UsageError
from mip_lightning.callbacks import BestCheckpoint, NonFiniteError
from mip_lightning.cli.main import main
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification, Segmentation
from mip_lightning.tasks._dice import LabelDice
from mip_lightning.trainer.gamma_search import GammaSearch

QUICK = ROOT / "tests" / "conf" / "quick.yaml"


def broken(task: HyperLightningModule) -> HyperLightningModule:
    with torch.no_grad():
        next(iter(task.model.theta0.values())).view(-1)[0] = torch.nan
    return task


def one_bad_pixel() -> DataLoader:
    images = torch.rand(32, 4)
    images[13, 2] = torch.nan
    return DataLoader(TensorDataset(images, torch.zeros(32, 4)), 8)


def test_one_bad_pixel_ends_a_fit_with_the_first_weight_that_is_not_finite():
    task = Denoising(nn.Linear(4, 4), Uniform(0, 1))
    with pytest.raises(
        NonFiniteError, match=r"model.primary.* NaN or infinity at step 4 .*epoch 0"
    ):
        trainer(max_epochs=3).fit(task, one_bad_pixel(), loader())


@pytest.mark.parametrize("of_weights_alone", [False, True])
def test_no_checkpoint_is_written_of_weights_that_are_not_finite(of_weights_alone):
    class Ends(Denoising):
        def on_train_epoch_end(self):
            broken(self) if self.current_epoch == 1 else None

    kept = ModelCheckpoint(
        "kept",
        "{epoch}",
        save_top_k=-1,
        save_weights_only=of_weights_alone,
        save_on_train_epoch_end=True,
    )
    task = Ends(nn.Linear(4, 4), Uniform(0, 1))
    options = {"enable_checkpointing": True, "callbacks": [kept], "default_root_dir": "."}
    with pytest.raises(NonFiniteError, match=r"go on from .*epoch=0.ckpt"):
        trainer(max_epochs=3, **options).fit(task, loader(), loader())
    assert [path.name for path in Path("kept").iterdir()] == ["epoch=0.ckpt"]


def test_a_monitor_that_is_nan_is_never_the_best():
    class Worse(Denoising):
        monitor = "val_mse"

        def loss(self, batch, primary):
            output = super().loss(batch, primary)
            factor = torch.nan if self.current_epoch < 2 else 1.0
            return output._replace(prediction=output.prediction * factor)

    best = BestCheckpoint("kept", "best", monitor="val_mse")
    task = Worse(nn.Linear(4, 4), Uniform(0, 1))
    options = {"enable_checkpointing": True, "callbacks": [best], "default_root_dir": "."}
    trainer(max_epochs=2, **options).fit(task, loader(), loader())
    assert not Path("kept").exists()
    trainer(max_epochs=4, **options).fit(task, loader(), loader())
    assert torch.load("kept/best.ckpt", weights_only=True)["epoch"] >= 2


@pytest.mark.parametrize("measure", ["validate", "test", "predict"])
def test_weights_that_are_not_finite_are_not_evaluated(measure):
    task = broken(BayesianClassification(MultilayerPerceptron(4, 3), Uniform(0, 1)))
    with pytest.raises(NonFiniteError, match=r"model.primary.layers.1.weight holds NaN"):
        getattr(trainer(), measure)(task, loader())


@pytest.mark.parametrize(
    "command",
    [
        ["test"], ["validate"], ["predict"], ["select-gamma"], ["export", "--gamma", "0.3"],
        ["fit", "--trainer.max_epochs", "3"],
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_finite_is_refused(command, capsys):
    main(["fit", "--config", str(QUICK), "--run_dir", "run", "--trainer.max_epochs", "1"])
    path = "run/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.hypernetwork.head.weight"][7, 3] = torch.inf
    torch.save(content, path)
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--ckpt_path", path])
    assert "model.hypernetwork.head.weight holds NaN or infinity" in str(exit_info.value.code)


class BadData(LightningDataModule):
    """Digits with one bad pixel, in training or in evaluation."""

    def __init__(self, where: str = "train"):
        super().__init__()
        self.where = where

    def _loader(self, where: str) -> DataLoader:
        images = torch.rand(40, 1, 8, 8)
        if self.where == where:
            images[20, 0, 4, 4] = torch.nan
        return DataLoader(TensorDataset(images, torch.arange(40) % 10), 8)

    def train_dataloader(self):
        return self._loader("train")

    def val_dataloader(self):
        return self._loader("val")

    def test_dataloader(self):
        return self._loader("val")


def command(where: str) -> None:
    config = yaml.safe_load(QUICK.read_text())
    config["data"] = {"class_path": f"{__name__}.BadData", "init_args": {"where": where}}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "config.yaml", "--run_dir", "run"])


def test_a_fit_with_a_bad_pixel_ends_with_one_line_and_no_checkpoint():
    with pytest.raises(SystemExit) as exit_info:
        command("train")
    assert "model.primary.layers.1.weight holds NaN or infinity at step 5" in str(
        exit_info.value.code
    )
    assert not Path("run/checkpoints").exists()


def test_metrics_of_predictions_that_are_nan_are_nan_and_nothing_is_the_best():
    command("val")
    with Path("run/val_gamma_curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2
    for row in rows:
        for metric in ("loss", "accuracy", "nll", "calibration_error"):
            assert math.isnan(float(row[metric])), metric
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    main(["test", "--ckpt_path", "run/checkpoints/last.ckpt"])
    with Path("run/test/csv/metrics.csv").open(newline="") as file:
        (logged,) = csv.DictReader(file)
    for metric in ("accuracy", "nll", "calibration_error"):
        assert math.isnan(float(logged[f"test_{metric}"]))
        assert math.isnan(float(logged[f"test_{metric}_ensemble"]))
    with pytest.raises(SystemExit) as exit_info:
        main(["select-gamma", "--ckpt_path", "run/checkpoints/last.ckpt"])
    assert "is not a number at any gamma" in str(exit_info.value.code)


class Half(nn.Module):
    """Two classes; NaN for the second image of a batch where gamma is above a half."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image, gamma):
        bad = torch.zeros(len(image), 1, 1, 1)
        bad[1:2] = torch.nan if gamma.item() > 0.5 else 0.0
        return torch.cat([-image, image], dim=1) * self.scale + bad


def test_labels_from_logits_that_are_nan_have_no_dice():
    task = Segmentation(Half(), Uniform(0, 1), test_grid_size=3, formulation="output",
                        theta=ThetaConfig(predicted=["scale"]))  # fmt: skip
    image = torch.randn(4, 1, 5, 5)
    batch = {"image": image, "labels": (image > 0).to(torch.uint8)}
    data = DataLoader([{k: v[i] for k, v in batch.items()} for i in range(4)], 4)
    trainer().test(task, data, verbose=False)
    dice = task.evaluation("test").result.curves["dice"]
    assert dice.values.isnan().tolist() == [False, False, True]
    assert dice.values[0] == pytest.approx(1.0)
    assert dice.best == 0
    assert dice.by_label[1].isnan().tolist() == [False, False, True]
    search = GammaSearch(task, [batch], "dice", 3, 0.1)
    assert search.select("all")["all"].value == pytest.approx(1.0)
    assert isinstance(task.configure_metrics()["dice"], LabelDice)


def test_infinities_that_no_training_changes_are_left_alone():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.mask = nn.Parameter(torch.full((4,), -torch.inf), requires_grad=False)
            self.register_buffer("other", torch.full((4,), -torch.inf))

        def forward(self, x):
            return super().forward(x).maximum(self.mask).maximum(self.other)

    options = {"theta": ThetaConfig(predicted=["weight"])}
    task = Denoising(Masked(), Uniform(0, 1), **options)
    t = trainer()
    t.fit(task, loader(), loader())
    t.save_checkpoint("last.ckpt")
    trainer().test(task, loader(), ckpt_path="last.ckpt", verbose=False)
    with pytest.raises(UsageError, match="weight holds NaN"):
        trainer().test(broken(task), loader(), verbose=False)
