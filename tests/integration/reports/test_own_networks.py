"""Networks and data of a user's own folder, by the installed command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import rows

OWN = '''
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mip_lightning import HyperLightningModule


class Sequences(nn.Module):
    """Layers with samples second, and a mask that all of them share."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)

    def forward(self, src, mask):
        return self.layer(src, src_mask=mask)


class Copying(HyperLightningModule):
    def loss(self, batch, primary):
        x = batch.transpose(0, 1)
        mask = torch.ones(len(x), len(x)).triu(1).bool()
        return F.mse_loss(primary(x, mask), x)


class Data(LightningDataModule):
    def train_dataloader(self):
        data = torch.rand(64, 8, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(data, 8)

    val_dataloader = test_dataloader = train_dataloader
'''

CONFIG = """
run_name: own
model:
  class_path: own.Copying
  init_args:
    primary: own.Sequences
    prior:
      class_path: Joint
      init_args:
        priors:
          a: {class_path: Uniform}
          b: {class_path: Normal}
    draws_per_batch: 4
    draws: {batch_dims: {src: 1, mask: null, output: 1}}
data: own.Data
trainer:
  max_epochs: 4
  accelerator: cpu
  callbacks:
    - class_path: lightning.pytorch.callbacks.LearningRateFinder
      init_args: {num_training_steps: 20, early_stop_threshold: null}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    (folder / "own.yaml").write_text(CONFIG)
    return folder


def run_in(folder: Path, arguments: str) -> str:
    found = subprocess.run(
        [str(Path(sys.executable).parent / "mip-lightning"), *arguments.split()],
        cwd=folder, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout + found.stderr


def test_samples_second_a_shared_mask_and_a_found_rate_are_trained_selected_and_tested(folder):
    said = run_in(folder, "fit --config own.yaml")
    rate = float(said.split("Learning rate set to ")[1].split()[0])
    assert 0 < rate != 3e-4
    run = "runs/own/version_0"
    losses = [
        float(row["val_loss"])
        for row in rows(folder / run / "csv" / "metrics.csv")
        if row["val_loss"]
    ]
    assert losses[-1] < losses[0]
    checkpoint = f"--ckpt_path {run}/checkpoints/best.ckpt"
    run_in(folder, f"select-gamma {checkpoint}")
    file = f"{run}/select-gamma/selected_gamma.yaml"
    selected = yaml.safe_load((folder / file).read_text())
    assert len(selected["gamma"]) == 2
    said = run_in(folder, f"test {checkpoint} --gamma {file}")
    (row,) = rows(folder / run / "test" / "test_gamma_curve.csv")
    assert float(row["loss"]) == pytest.approx(selected["value"], rel=1e-4)
