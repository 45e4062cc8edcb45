"""ChannelsLast changes how weights and features lie in memory, and nothing else."""

from typing import get_args

import pytest
import torch
from helpers import LossAlone, trainer
from lightning.pytorch import seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mip_lightning import Uniform
from mip_lightning.callbacks import ChannelsLast
from mip_lightning.hypernetworks.hypermodel import Formulation


def task(dimensions: int, formulation: Formulation = "mip") -> LossAlone:
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    network = nn.Sequential(convolution(2, 4, 3, padding=1), nn.ReLU(), convolution(4, 3, 2))
    return LossAlone(network, Uniform(0, 1), formulation)


def loader(dimensions: int) -> DataLoader:
    images = torch.rand(4, 2, *[5] * dimensions)
    return DataLoader(TensorDataset(images, torch.rand(4, 3, *[4] * dimensions)), 2)


def lies_last(tensor: torch.Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.is_contiguous(memory_format=formats[tensor.ndim])


@pytest.mark.parametrize("formulation", get_args(Formulation))
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_whole_network_runs_in_it_whatever_the_formulation(dimensions, formulation):
    model = task(dimensions, formulation)
    seen: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.register_forward_hook(lambda module, args, output: seen.append(output))
    trainer(callbacks=[ChannelsLast()], fast_dev_run=True).test(
        model, loader(dimensions), verbose=False
    )
    assert seen
    assert all(lies_last(features) for features in seen)
    assert not any(features.is_contiguous() for features in seen)
    network = model.model.materialize(0.5)
    assert all(lies_last(weight) for weight in network.parameters() if weight.ndim > 1)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("num_draws", [1, 2])
def test_training_gives_the_same_weights(dimensions, num_draws):
    trained = []
    for callbacks in ([], [ChannelsLast()]):
        seed_everything(0, verbose=False)
        model = task(dimensions)
        model.draws_per_batch = num_draws
        trainer(callbacks=callbacks, max_epochs=5).fit(
            model, loader(dimensions), loader(dimensions)
        )
        trained.append(model.state_dict())
    torch.testing.assert_close(*trained, atol=1e-5, rtol=1e-4)
