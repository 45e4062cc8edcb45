"""Two ranks over gloo, started by Lightning's own DDP strategy."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

from mip_lightning.cli.main import main

REGISTRATION = str(ROOT / "tests" / "conf" / "registration.yaml")
SCALE_SPACE = str(ROOT / "tests" / "conf" / "scale_space.yaml")
QUICK = str(ROOT / "tests" / "conf" / "quick.yaml")
COMMAND = str(Path(sys.executable).with_name("mip-lightning"))  # as it is installed
TWO_RANKS = [
    "--trainer.strategy", "ddp", "--trainer.devices", "2",
    # As users have it, and on one rank of several only.
    "--trainer.enable_progress_bar", "true", "--trainer.enable_model_summary", "true",
]  # fmt: skip


def command(*args: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [COMMAND, *args],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def curve(folder: str) -> list[dict[str, float]]:
    with Path(folder, "test_gamma_curve.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit on two ranks, then a test and a prediction on two ranks and on one."""
    folder = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command("fit", "--config", QUICK, "--trainer.max_epochs", "1", *TWO_RANKS)
        checkpoint = ["--ckpt_path", "runs/quick/version_0/checkpoints/last.ckpt"]
        one_rank = ["--trainer.strategy", "auto", "--trainer.devices", "1"]
        for kind in ("test", "predict"):
            command(kind, *checkpoint, "--run_dir", f"{kind}_on_two")
            command(kind, *checkpoint, "--run_dir", f"{kind}_on_one", *one_rank)
    return folder


def test_all_ranks_share_one_run_directory(runs):
    assert [path.name for path in (runs / "runs" / "quick").iterdir()] == ["version_0"]


def test_metrics_on_two_ranks_equal_those_on_one(runs):
    two, one = curve(runs / "test_on_two"), curve(runs / "test_on_one")
    assert len(one) == 3
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_predictions_of_two_ranks_are_those_of_one_in_the_same_order(runs):
    two, one = (
        (runs / f"predict_on_{n}" / "predictions.csv").read_text().splitlines()
        for n in ("two", "one")
    )
    assert len(one) == 361
    for a, b in zip(two[1:], one[1:], strict=True):
        numbers = [[float(value) for value in line.split(",")] for line in (a, b)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)


@pytest.mark.parametrize(
    ("config", "num_gammas", "num_volumes"),
    [(REGISTRATION, 3, 2 * 3), (SCALE_SPACE, 4, 2)],
    ids=["registration", "scale_space"],
)
def test_dice_of_each_label_and_volumes_are_those_of_one_rank(config, num_gammas, num_volumes):
    command("fit", "--config", config, "--run_dir", "run", *TWO_RANKS)
    checkpoint = ["--ckpt_path", "run/checkpoints/last.ckpt"]
    one_rank = ["--trainer.strategy", "auto", "--trainer.devices", "1"]
    for ranks, options in (("two", []), ("one", one_rank)):
        command("test", *checkpoint, "--run_dir", f"test_{ranks}", *options)
        command("predict", *checkpoint, "--gamma", "0.5", "--run_dir", f"predict_{ranks}", *options)
    both = []
    for ranks in ("two", "one"):
        with Path(f"test_{ranks}", "test_dice_by_label.csv").open(newline="") as file:
            both.append([float(row["dice"]) for row in csv.DictReader(file)])
    assert len(both[0]) == 4 * num_gammas
    assert both[0] == pytest.approx(both[1], abs=1e-6)
    two, one = (
        sorted(path.relative_to(folder) for path in folder.glob("*/*.nii.gz"))
        for folder in (Path("predict_two"), Path("predict_one"))
    )
    assert len(one) == num_volumes
    assert two == one


FIVE = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Few(LightningDataModule):
    def __init__(self, num: int = 5):
        super().__init__()
        self.num = num

    def train_dataloader(self, num=8):
        generator = torch.Generator().manual_seed(num)
        images = torch.rand(num, 1, 8, 8, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(num) % 10), 2)

    def val_dataloader(self):
        return self.train_dataloader(self.num)

    test_dataloader = val_dataloader
"""


@pytest.mark.parametrize("num", [5, 1])
def test_numbers_of_samples_that_ranks_do_not_divide_are_evaluated_exactly(num):
    Path("few.py").write_text(FIVE)
    config = yaml.safe_load(Path(QUICK).read_text())
    config["data"] = {"class_path": "few.Few", "init_args": {"num": num}}
    del config["trainer"]["enable_progress_bar"], config["trainer"]["enable_model_summary"]
    Path("few.yaml").write_text(yaml.safe_dump(config))
    command("fit", "--config", "few.yaml", "--run_dir", "run", *TWO_RANKS)
    checkpoint = ["--ckpt_path", "run/checkpoints/last.ckpt"]
    one_rank = ["--trainer.strategy", "auto", "--trainer.devices", "1"]
    logged = []
    for ranks, options in (("two", []), ("one", one_rank)):
        command("test", *checkpoint, "--run_dir", ranks, *options)
        with Path(ranks, "csv", "metrics.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        logged.append({key: float(value) for key, value in row.items()})
    assert logged[0] == pytest.approx(logged[1], abs=1e-6)
    assert {"test_accuracy", "test_calibration_error_ensemble"} <= logged[0].keys()


def test_a_command_leaves_its_process_group_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("mip_lightning.cli.main.MipLightningCLI", lambda args: None)
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    main([])
    assert not torch.distributed.is_initialized()


RANKS = """
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from helpers import Denoising, loader
from mip_lightning import Uniform

class Compare(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gamma = trainer.strategy.all_gather(pl_module.sample_gamma(batch, batch_idx))
        assert gamma[0].item() != gamma[1].item()
        for parameter in pl_module.parameters():
            both = trainer.strategy.all_gather(parameter.detach())
            assert torch.equal(both[0], both[1])

if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(
        strategy="ddp", devices=2, accelerator="cpu", max_epochs=2, callbacks=[Compare()]
    )
    trainer.fit(Denoising(nn.Linear(4, 4), Uniform(0, 1)), loader(), loader())
    torch.distributed.destroy_process_group()  # else gloo's threads may abort the exit
"""


def test_ranks_draw_their_own_gamma_and_keep_the_same_weights():
    Path("ranks.py").write_text(RANKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "ranks.py"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
