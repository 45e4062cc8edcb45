"""ChannelsLast: convolutions run on features whose channels lie last."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import convert_conv2d_weight_memory_format, convert_conv3d_weight_memory_format
from typing_extensions import override


class ChannelsLast(Callback):
    """Keeps the weights of convolutions with their channels last.

    Results are the same but for rounding. Convolutions pass the order on to their outputs, and
    predicted weights take it from theta0, so that a whole network runs in it; most of them run
    faster so, on CPUs and in half precision on GPUs. Checkpoints go either way.

    Source: ``torch.channels_last``; the PyTorch tutorial "Channels Last Memory Format".
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        convert_conv2d_weight_memory_format(pl_module, torch.channels_last)
        convert_conv3d_weight_memory_format(pl_module, torch.channels_last_3d)
