"""Checks of layers whose samples lie along the second dimension, where draws split the first.

Recurrent layers and attention of torch are such, unless built with ``batch_first=True``. A network
may move its samples there before it calls them, and back; then K draws are right. If it does not,
each draw would get a part of the time in place of a part of the samples.
"""

import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mip_lightning.errors import UsageError

_num_samples: ContextVar[int | None] = ContextVar("num_samples", default=None)
"""Samples of a draw in this thread's innermost call: other threads may run the same layers."""


class BatchFirstCheck:
    """Refuses K draws where a layer would not find samples along the second dimension.

    Args:
        network: The primary network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._modules: list[nn.Module] = []
        self._layers: dict[str, nn.Module] = {}

    def check_layers(self, num_draws: int) -> None:
        """Refuse a network that has ``batch_first=False`` itself, or such a layer among torch's.

        No layer of torch moves samples to another dimension. So a network of nothing else gives
        each layer what it was given; other networks are checked by what their layers get.

        Args:
            num_draws: K, 2 or more.

        Raises:
            UsageError: If it is one.
        """
        for name, layer in self._found().items():
            if layer is self._network or all(map(_is_of_torch, self._network.modules())):
                raise UsageError(
                    f"{num_draws} draws, and {_told(name, layer)} takes samples along the second"
                    " dimension: build it with batch_first=True"
                )

    @contextmanager
    def inputs_checked(self, num_samples: int) -> Iterator[None]:
        """While it lasts, refuse inputs of such layers whose samples lie elsewhere.

        Of an input ``(L, N, ...)`` nothing but the sizes can tell: N must be a multiple of m, and
        L must not be m. Inputs ``(L, E)``, without a dimension of samples, pass if L is not m.

        Args:
            num_samples: m, the number of samples of each draw.

        Raises:
            UsageError: If a layer gets another input.
        """
        with ExitStack() as stack:
            stack.callback(_num_samples.reset, _num_samples.set(num_samples))
            for name, layer in self._found().items():
                check = _InputCheck(_told(name, layer))
                handle = layer.register_forward_pre_hook(check, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _found(self) -> dict[str, nn.Module]:
        """The layers by name, looked for where the network has other modules than before."""
        if torch.compiler.is_compiling():  # compiled code cannot keep them
            return _layers_of(self._network)
        modules = list(self._network.modules())
        if len(modules) != len(self._modules) or not all(map(operator.is_, modules, self._modules)):
            self._modules, self._layers = modules, _layers_of(self._network)
        return self._layers


class _InputCheck:
    """A hook. It refers to no part of the network, which could not be replicated then."""

    def __init__(self, told: str) -> None:
        self._told = told

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        num_samples = _num_samples.get()
        given = next(iter((*args, *kwargs.values())), None)
        if num_samples is None or not isinstance(given, Tensor) or given.ndim < 2:
            return
        has_samples = given.ndim > 2
        if len(given) == num_samples or (has_samples and given.shape[1] % num_samples):
            raise UsageError(
                f"{self._told} takes samples along the second dimension, and with {num_samples}"
                f" samples a draw it got an input of shape {tuple(given.shape)}, where they may lie"
                " elsewhere: build it with batch_first=True, which tells where they are"
            )


def _layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in network.named_modules()
        if getattr(module, "batch_first", None) is False
    }


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _told(name: str, layer: nn.Module) -> str:
    return f"{name or 'the primary'}, a {type(layer).__name__},"
