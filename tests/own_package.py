"""What a user would write: nothing here is known to the library."""

import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mip_lightning import HyperLightningModule, Prior


class Line(nn.Module):
    def __init__(self, features: int = 3):
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, x):
        return self.linear(x)


class Triangular(Prior):
    @property
    def dim(self) -> int:
        return 1

    def quantile(self, levels):
        return levels.sqrt()

    def to_unit(self, gamma):
        return gamma

    def grid_levels(self, n):
        return torch.linspace(0, 1, n)


class Regression(HyperLightningModule):
    monitor = "val_loss_best"

    def loss(self, batch, primary):
        x, y = batch
        return F.mse_loss(primary(x), y)


class Points(LightningDataModule):
    def train_dataloader(self):
        x = torch.rand(16, 3)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8)

    val_dataloader = train_dataloader


class Announce(Callback):
    def __init__(self, text: str):
        self.text = text

    def on_fit_end(self, trainer, pl_module):
        print(self.text)


class Pictures(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4)), 4)

    val_dataloader = train_dataloader
