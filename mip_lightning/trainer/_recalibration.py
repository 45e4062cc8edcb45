"""BatchNorm statistics of a network, measured again at the one gamma that it is for."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.swa_utils import update_bn

from mip_lightning.utilities.modes import preserve_modes
from mip_lightning.utilities.nested import Inputs, as_arguments


def recalibrate(network: nn.Module, batches: Iterable[Inputs]) -> None:
    """Measure the running statistics of BatchNorm layers over some batches; modes stay.

    A hypermodel's statistics are averages over all gamma that training drew; those of a network
    that is materialized at one gamma can differ much from them.

    Args:
        network: An ordinary network, such as ``HyperModel.materialize`` gives.
        batches: What the network takes: a tensor, or a tuple or mapping of arguments, each.
    """
    with preserve_modes(network):
        update_bn(((inputs,) for inputs in batches), _Unpacking(network))


class _Unpacking(nn.Module):
    """Takes a network's arguments as one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> Any:
        args, kwargs = as_arguments(inputs)
        return self.network(*args, **kwargs)
