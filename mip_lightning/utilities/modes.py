"""A network in evaluation mode for a while, whatever modes its layers are in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_modes(network: nn.Module) -> Iterator[None]:
    """Afterwards each module is in the mode in which it was: a frozen BatchNorm too.

    ``Module.train`` after ``Module.eval`` would bring all to one mode.

    Args:
        network: The network.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """In evaluation mode while it lasts; afterwards each module as it was.

    Args:
        network: The network.
    """
    with preserve_modes(network):
        network.eval()
        yield
