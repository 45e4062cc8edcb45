"""A call of the primary network with predicted weights: of one gamma, or of K draws in a batch."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.func import vmap

from mip_lightning.draws import (
    Inputs,
    as_arguments,
    draws_dimension,
    join_draws,
    pick_draw,
    split_draws,
    tensors_in,
)
from mip_lightning.errors import UsageError
from mip_lightning.gamma_argument import GammaArgument
from mip_lightning.layout import ParameterLayout
from mip_lightning.reweighted import Reweighted

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class PrimaryCall:
    """Calls the primary with the weights of one gamma, or of K draws.

    K draws go through ``vmap``, except for what ``vmap`` cannot do: then they are called in turn.

    Args:
        primary: The primary network.
        layout: Names and shapes of the predicted weights.
        without_vmap: Types of modules that ``vmap`` cannot run: recurrent layers, and such as look
            at the values of their inputs.
    """

    def __init__(
        self,
        primary: nn.Module,
        layout: ParameterLayout,
        without_vmap: tuple[type[nn.Module], ...],
    ) -> None:
        self.primary = primary
        self.layout = layout
        self._without_vmap = without_vmap
        self._reweighted = Reweighted(primary, list(layout.shapes))
        self._gamma_argument = GammaArgument(primary)

    @property
    def asks_for_gamma(self) -> bool:
        """Whether the primary's ``forward`` has an argument ``gamma``."""
        return self._gamma_argument.is_asked_for

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        inputs: Inputs,
        gamma: Float[Tensor, "*K D"] | None = None,
    ) -> Any:
        """Call it.

        Args:
            theta: Name to ``(*shape)`` or ``(K, *shape)``.
            inputs: A tensor ``(B, ...)``, or a tuple of positional or a mapping of keyword
                arguments; for K draws, each tensor in it is split into K groups.
            gamma: What theta was predicted at, for a primary that asks for it.

        Returns:
            What the primary returns, for all B samples.

        Raises:
            UsageError: If K does not divide the number of samples, each has a gamma of its own
                and a layer in training normalizes over samples, or the primary asks for a gamma
                that is not given.
        """
        args, kwargs = as_arguments(inputs)
        name, first = next(iter(theta.items()))
        if first.ndim == len(self.layout.shapes[name]):
            gamma = gamma[0] if gamma is not None and gamma.ndim == 2 else gamma
            return self._reweighted(theta, args, self._gamma_argument.added(args, kwargs, gamma))
        num_draws = len(first)
        self._check_samples(num_draws, args, kwargs)
        groups = (
            tuple(split_draws(value, num_draws) for value in args),
            {name: split_draws(value, num_draws) for name, value in kwargs.items()},
        )
        if self._goes_in_turn():
            return self._in_turn(theta, *groups, gamma)
        in_dims = (
            0,
            tuple(draws_dimension(value) for value in args),
            {name: draws_dimension(value) for name, value in kwargs.items()},
        )
        # Its method, for torch 2.11 compiles no vmap of an object that has no name.
        call = vmap(self._reweighted.__call__, in_dims, randomness="different")
        output = call(dict(theta), *groups)
        return apply_to_collection(output, Tensor, lambda t: t.flatten(0, 1) if t.ndim > 1 else t)

    def bound(
        self, theta: Mapping[str, Tensor], gamma: Float[Tensor, "1 D"] | None
    ) -> Callable[[Inputs], Any]:
        """The call with the weights of one gamma, to be made several times while the mode stays.

        Args:
            theta: Name to ``(*shape)``.
            gamma: What theta was predicted at, for a primary that asks for it.
        """
        network = self._reweighted.bound(theta)
        own_gamma = None if gamma is None else gamma[0]

        def call(inputs: Inputs) -> Any:
            args, kwargs = as_arguments(inputs)
            return network(*args, **self._gamma_argument.added(args, kwargs, own_gamma))

        return call

    def _in_turn(
        self,
        theta: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        gamma: Float[Tensor, "K D"] | None,
    ) -> Any:
        """Call one draw after another.

        Args:
            theta: Name to ``(K, *shape)``.
            args: Positional arguments, split into K groups.
            kwargs: Keyword arguments, split likewise.
            gamma: The draws.
        """
        outputs = []
        for draw in range(len(next(iter(theta.values())))):
            own_args = tuple(pick_draw(value, draw) for value in args)
            own_kwargs = {name: pick_draw(value, draw) for name, value in kwargs.items()}
            own_gamma = None if gamma is None else gamma[draw]
            outputs.append(
                self._reweighted(
                    {name: tensor[draw] for name, tensor in theta.items()},
                    own_args,
                    self._gamma_argument.added(own_args, own_kwargs, own_gamma),
                )
            )
        return join_draws(outputs)

    def _goes_in_turn(self) -> bool:
        """Whether ``vmap`` cannot do it.

        It cannot write buffers (running statistics), nor look at values, as a primary that asks
        for gamma may.
        """
        return self.asks_for_gamma or any(
            isinstance(module, self._without_vmap)
            or (module.training and next(module.buffers(recurse=False), None) is not None)
            for module in self.primary.modules()
        )

    def _check_samples(self, num_draws: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse inputs whose first dimension is time, and statistics over single samples."""
        if getattr(self.primary, "batch_first", True) is False:
            raise UsageError(
                f"{num_draws} draws, and the primary, {type(self.primary).__name__}, takes samples"
                " along the second dimension: build it with batch_first=True"
            )
        sizes = [len(t) for t in tensors_in([args, kwargs]) if t.ndim]
        if not sizes or num_draws == 1 or sizes[0] != num_draws:
            return
        for name, module in self.primary.named_modules():
            if isinstance(module, _BATCH_NORM) and (module.training or module.running_mean is None):
                raise UsageError(
                    f"one gamma a sample, and {name or 'the primary'} is a {type(module).__name__}"
                    " in training: its statistics would be those of single samples; draw fewer"
                    " gammas a batch, or use GroupNorm or LayerNorm"
                )
