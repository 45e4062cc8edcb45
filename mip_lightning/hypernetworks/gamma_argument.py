"""The raw gamma for a primary whose ``forward`` asks for it, by an argument of that name."""

import inspect
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mip_lightning.errors import UsageError

NAME = "gamma"


class GammaArgument:
    """Whether a network asks for gamma, and its arguments with it.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = inspect.signature(network.forward).parameters
        self._is_asked_for = NAME in parameters
        # So many positional arguments leave it out; any number, where it goes by its name alone.
        self._before = math.inf
        if self._is_asked_for and parameters[NAME].kind is not inspect.Parameter.KEYWORD_ONLY:
            self._before = list(parameters).index(NAME)

    @property
    def is_asked_for(self) -> bool:
        """Whether the network has such an argument."""
        return self._is_asked_for

    def merge_into(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        gamma: Float[Tensor, " D"] | float | None,
    ) -> dict[str, Any]:
        """The keyword arguments, with gamma where it is asked for and not given already.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            gamma: One draw.

        Raises:
            UsageError: If gamma is asked for and there is none.
        """
        if not self._is_asked_for or NAME in kwargs or len(args) > self._before:
            return kwargs
        if gamma is None:
            raise UsageError(
                "gamma=None, and the primary's forward asks for gamma: give the gamma at which"
                " theta was predicted"
            )
        return {**kwargs, NAME: gamma}


def fix_gamma(network: nn.Module, gamma: Float[Tensor, " D"]) -> None:
    """From now on a network that asks for gamma is called at this one, unless another is given.

    Args:
        network: The network, whose class and weights stay as they are.
        gamma: One draw.
    """
    argument = GammaArgument(network)
    if argument.is_asked_for:
        network.register_forward_pre_hook(_Fixed(argument, gamma.detach().cpu()), with_kwargs=True)


class _Fixed:
    """The hook; a class of its own, so that the network can be copied and pickled."""

    def __init__(self, argument: GammaArgument, gamma: Float[Tensor, " D"]) -> None:
        self._argument = argument
        self._gamma = gamma
        self._number = float(gamma) if gamma.numel() == 1 else None

    def __call__(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # While it is exported a number, which becomes a constant: sizes may depend on it.
        constant = torch.compiler.is_compiling() and self._number is not None
        gamma = self._number if constant else self._gamma
        return args, self._argument.merge_into(args, kwargs, gamma)
