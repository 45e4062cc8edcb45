"""What several tests share: tasks, loaders, trainers, files, clean processes."""

import csv
import os
import struct
import subprocess
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from mip_lightning import HyperLightningModule, StepOutput, Uniform
from mip_lightning.networks import MultilayerPerceptron
from mip_lightning.tasks import BayesianClassification

ROOT = Path(__file__).parent.parent


class Denoising(HyperLightningModule):
    """The README's task, with a metric: the target depends on gamma, so that gamma matters."""

    def loss(self, batch, primary):
        noisy, clean = batch
        prediction, target = primary(noisy), clean * primary.gamma.mean()
        return StepOutput(F.mse_loss(prediction, target), prediction.detach(), target)

    def configure_metrics(self):
        return {"mse": MeanSquaredError()}


class LossAlone(HyperLightningModule):
    def loss(self, batch, primary):
        noisy, clean = batch
        return F.mse_loss(primary(noisy), clean)


def loader(samples: int = 32, batch: int = 8) -> DataLoader:
    data = torch.rand(samples, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(data, data), batch)


def trainer(**options) -> Trainer:
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


def bayesian_task(**options) -> BayesianClassification:
    return BayesianClassification(MultilayerPerceptron(6, 3), Uniform(0, 1), **options)


def image_loader(samples: int = 20) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(samples, 6, generator=generator)
    labels = torch.randint(3, (samples,), generator=generator)
    return DataLoader(TensorDataset(images, labels), 8)


def output_at(task: HyperLightningModule, batch, gamma: torch.Tensor) -> StepOutput:
    """What a task makes of a batch at gamma, which is not checked."""
    return task.step_output(batch, task.model.at(gamma, check=False))


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def write_mnist(folder: Path, train: int = 50, test: int = 10) -> Path:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        pixels = torch.arange(count * 784).remainder(256).to(torch.uint8)
        header = struct.pack(">4i", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + bytes(pixels.tolist()))
        labels = struct.pack(">2i", 0x801, count) + bytes(i % 10 for i in range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def python(*command: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def large_head_task(kind: type[LossAlone] = LossAlone, **options) -> LossAlone:
    """A task with a head of 148,000 numbers."""
    seed_everything(0, verbose=False)
    return kind(MultilayerPerceptron(4, 4, hidden_sizes=[128]), Uniform(0, 1), **options)


class Disturbed(Denoising):
    """Adds to the loss, or to the gradient, of some batches of the first epoch."""

    def __init__(self, disturbances, **options):
        super().__init__(nn.Linear(4, 4), Uniform(), **options)
        self.disturbances = disturbances
        self.batches = 0

    def loss(self, batch, primary):
        output = super().loss(batch, primary)
        if not self.training:
            return output
        disturbance = self.disturbances.get(self.batches, 0.0)
        self.batches += 1
        if disturbance == "gradient":  # the square root of zero has none
            return StepOutput(output.loss + 0.0 * (output.loss * 0.0).sqrt())
        return StepOutput(output.loss + disturbance)
