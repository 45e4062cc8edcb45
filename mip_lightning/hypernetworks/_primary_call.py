"""A call of the primary network with predicted weights: of one gamma, or of K draws in a batch."""

import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.func import vmap

from mip_lightning.errors import UsageError
from mip_lightning.functional.replica import ReplicaCall
from mip_lightning.hypernetworks._batch_first import BatchFirstCheck
from mip_lightning.hypernetworks._batching import SplitArguments, join_draws, join_vmapped
from mip_lightning.hypernetworks._parameter_layout import ParameterLayout
from mip_lightning.hypernetworks.draws import OUTPUT, BatchDims, DrawsConfig
from mip_lightning.hypernetworks.gamma_argument import GammaArgument
from mip_lightning.utilities.nested import holds_only_tensors, map_leaves, map_tensors, tensors_in

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class PrimaryCall:
    """Calls the primary with the weights of one gamma, or of K draws.

    K draws go through ``vmap``, except for what ``vmap`` cannot do: then they are called in turn.
    What cannot be known before (a primary that looks at values, say) is tried, once.

    Args:
        primary: The primary network.
        layout: Names and shapes of the predicted weights.
        without_vmap: Types of modules that ``vmap`` cannot run: recurrent layers, and such as look
            at the values of their inputs.
        draws: Where the samples lie, and how draws are run.
    """

    def __init__(
        self,
        primary: nn.Module,
        layout: ParameterLayout,
        without_vmap: tuple[type[nn.Module], ...],
        draws: DrawsConfig,
    ) -> None:
        self.primary = primary
        self.layout = layout
        self._without_vmap = without_vmap
        self._replica_call = ReplicaCall(primary, list(layout.shapes))
        self._gamma_argument = GammaArgument(primary)
        self._dims = BatchDims(primary, draws.batch_dims)
        self._run = draws.run
        self._batch_first = BatchFirstCheck(primary)
        self._vmap_fails = False  # until it has failed once

    @property
    def asks_for_gamma(self) -> bool:
        """Whether the primary's ``forward`` has an argument ``gamma``."""
        return self._gamma_argument.is_asked_for

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        gamma: Float[Tensor, "K D"] | None,
    ) -> Any:
        """Call it.

        Args:
            theta: Name to ``(*shape)`` or ``(K, *shape)``.
            args: Positional arguments; for K draws, each tensor in them is split into K groups.
            kwargs: Keyword arguments, likewise.
            gamma: What theta was predicted at, for a primary that asks for it.

        Returns:
            What the primary returns, for all B samples; see ``join_draws``.

        Raises:
            UsageError: If K does not divide the number of samples, each has a gamma of its own
                and a layer in training normalizes over samples, samples may not lie where a layer
                takes them, inputs or outputs hold what cannot be split or joined, or the primary
                asks for a gamma that is not given.
        """
        name, first = next(iter(theta.items()))
        if first.ndim == len(self.layout.shapes[name]):
            own_gamma = None if gamma is None else gamma[0]
            return self._replica_call(
                theta, args, self._gamma_argument.merge_into(args, kwargs, own_gamma)
            )
        num_draws = len(first)
        split = SplitArguments(args, kwargs, num_draws, self._dims)
        if num_draws > 1:
            self._check_samples(num_draws, split.num_samples)
        with self._inputs_checked(num_draws, split.num_samples):
            if self._goes_in_turn(split):
                return self._in_turn(theta, split, gamma)
            try:
                output = self._at_once(theta, split)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError) as error:
                if self._run == "vmap":
                    raise
                reason = next(iter(str(error).splitlines()), "")  # it cannot look at values, say
            else:
                if holds_only_tensors(output):
                    return self._joined(output, split.per_draw)
                # Other objects are of all draws at once, and may hold what only vmap can read.
                reason = "its output holds other objects than tensors"
                if self._run == "vmap":
                    raise UsageError(f"draws.run='vmap', and the primary cannot: {reason}")
            output = self._in_turn(theta, split, gamma)  # any other error comes again
            if not torch.compiler.is_compiling():
                self._vmap_fails = True
                name, why = type(self.primary).__name__, textwrap.shorten(reason, 120)
                rank_zero_info(f"K draws of {name} run in turn, for vmap cannot run it ({why})")
            return output

    def _inputs_checked(
        self, num_draws: int, num_samples: int | None
    ) -> AbstractContextManager[None]:
        """Refuses what layers get that take samples second, but in compiled code.

        Args:
            num_draws: K.
            num_samples: B, if there are inputs to tell it.
        """
        unknown = num_samples is None or self._dims.are_said
        if num_draws == 1 or num_samples is None or unknown or torch.compiler.is_compiling():
            return nullcontext()
        return self._batch_first.inputs_checked(num_samples // num_draws)

    def _at_once(self, theta: Mapping[str, Tensor], split: SplitArguments) -> Any:
        """Call all draws by ``vmap``, which is given and gives back nothing but tensors.

        Args:
            theta: Name to ``(K, *shape)``.
            split: The arguments.

        Returns:
            What the primary returns, with tensors of shape ``(K, ...)``.
        """
        outputs = []

        def run(weights: dict[str, Tensor], given: list[Tensor]) -> list[Tensor]:
            own = split.holding(iter(given))
            outputs.append(self._replica_call(weights, own.args, own.kwargs))
            return list(tensors_in(outputs[0]))

        tensors, dims = split.for_vmap
        found = iter(vmap(run, (0, dims), randomness="different")(dict(theta), tensors))
        return map_tensors(outputs[0], lambda tensor: next(found))

    def _joined(self, output: Any, per_draw: int | None) -> Any:
        """The output of ``vmap`` with the samples of all draws along one dimension."""

        def join(name: str, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return join_vmapped(leaf, self._dims, per_draw, name)

        return map_leaves(output, join, OUTPUT)

    def bound(
        self, theta: Mapping[str, Tensor], gamma: Float[Tensor, "1 D"] | None
    ) -> Callable[..., Any]:
        """The call with the weights of one gamma, to be made several times while the mode stays.

        The time that a call takes to put the weights in place is spent once.

        Args:
            theta: Name to ``(*shape)``.
            gamma: What theta was predicted at, for a primary that asks for it.
        """
        network = self._replica_call.bound(theta)
        own_gamma = None if gamma is None else gamma[0]

        def call(*args: Any, **kwargs: Any) -> Any:
            return network(*args, **self._gamma_argument.merge_into(args, kwargs, own_gamma))

        return call

    def _in_turn(
        self,
        theta: Mapping[str, Tensor],
        split: SplitArguments,
        gamma: Float[Tensor, "K D"] | None,
    ) -> Any:
        """Call one draw after another.

        Args:
            theta: Name to ``(K, *shape)``.
            split: The arguments.
            gamma: The draws.
        """
        outputs = []
        for draw in range(len(next(iter(theta.values())))):
            own_args, own_kwargs = split.of_draw(draw)
            own_gamma = None if gamma is None else gamma[draw]
            outputs.append(
                self._replica_call(
                    {name: tensor[draw] for name, tensor in theta.items()},
                    own_args,
                    self._gamma_argument.merge_into(own_args, own_kwargs, own_gamma),
                )
            )
        return join_draws(outputs, self._dims, split.per_draw)

    def _goes_in_turn(self, split: SplitArguments) -> bool:
        """Whether the user says so, or ``vmap`` cannot do it.

        It cannot write buffers (running statistics), nor look at values, as a primary that asks
        for gamma may.
        """
        return self._run == "in_turn" or (self._run == "auto" and self._vmap_cannot(split))

    def _vmap_cannot(self, split: SplitArguments) -> bool:
        return (
            self.asks_for_gamma
            or not split.are_tensors
            or self._vmap_fails
            or any(
                isinstance(module, self._without_vmap)
                or (module.training and next(module.buffers(recurse=False), None) is not None)
                for module in self.primary.modules()
            )
        )

    def _check_samples(self, num_draws: int, num_samples: int | None) -> None:
        """Refuse layers that take samples second, and statistics over single samples.

        Args:
            num_draws: K, 2 or more.
            num_samples: B, if there are inputs to tell it.
        """
        if not self._dims.are_said:
            self._batch_first.check_layers(num_draws)
        if num_samples != num_draws:
            return
        for name, module in self.primary.named_modules():
            if isinstance(module, _BATCH_NORM) and (module.training or module.running_mean is None):
                raise UsageError(
                    f"one gamma a sample, and {name or 'the primary'} is a {type(module).__name__}"
                    " in training: its statistics would be those of single samples; draw fewer"
                    " gammas a batch, or use GroupNorm or LayerNorm"
                )
