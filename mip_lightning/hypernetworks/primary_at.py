"""PrimaryAtGamma: the primary network with the weights that are predicted at a gamma."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mip_lightning.hypernetworks._primary_call import PrimaryCall
from mip_lightning.utilities.nested import Arguments


class PrimaryAtGamma:
    """The primary with the weights at one gamma or at K draws, as ``HyperModel.at`` gives it.

    Called as the primary itself, it runs: each tensor ``(B, ...)`` among the arguments is split
    into K groups, and sample i uses draw ``i // (B / K)``. The weights are predicted when they are
    first needed, once, so they stay as they are when the model is trained further.

    Args:
        gamma: The draws, shape ``(K, D)``. They are moved to ``device`` without waiting for it.
        device: The device of the model.
        predict: Predicts theta, name to ``(K, *shape)`` from ``(K, D)``, to ``(*shape)`` from
            ``(D,)``.
        call: Calls the primary with given weights.
        is_one: Whether one value was given, so that ``theta`` has no dimension K.

    Attributes:
        gamma: The draws on the model's device, shape ``(K, D)``.
    """

    def __init__(
        self,
        gamma: Float[Tensor, "K D"],
        device: torch.device,
        predict: Callable[[Tensor], dict[str, Tensor]],
        call: PrimaryCall,
        is_one: bool,
    ) -> None:
        self.gamma = gamma.to(device, non_blocking=True)
        self._raw = gamma if gamma.device.type == "cpu" else None
        self._predict = predict
        self._call = call
        self._is_one = is_one
        self._weights: dict[str, Tensor] | None = None
        self._has_graph = False
        self._replica: Callable[..., Any] | None = None
        self._recorded: list[Arguments] | None = None

    @property
    def theta(self) -> dict[str, Tensor]:
        """The predicted weights, name to ``(K, *shape)``, or to ``(*shape)`` for one value."""
        weights = self._predicted()
        if len(self.gamma) > 1 or self._is_one:
            return weights
        return {name: weight.unsqueeze(0) for name, weight in weights.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary.

        Args:
            args: Positional arguments of the primary.
            kwargs: Keyword arguments of the primary. If its ``forward`` has an argument ``gamma``,
                it gets the draw of shape ``(D,)``, on the CPU, unless it is given here.

        Returns:
            What the primary returns, for all B samples. The tensors that K draws return are joined
            along their first dimension; those without dimensions become one of shape ``(K,)``.

        Raises:
            UsageError: If K does not divide the number of samples, each has a gamma of its own
                and a layer in training normalizes over samples, samples may not lie where a layer
                takes them, or inputs or outputs hold what cannot be split or joined.
        """
        if self._recorded is not None:
            self._recorded.append(Arguments(args, kwargs))
        if self._call.asks_for_gamma and self._raw is None:
            self._raw = self.gamma.cpu()
        changes = torch.is_grad_enabled() or self._call.primary.training
        if changes or len(self.gamma) > 1 or torch.compiler.is_compiling():
            return self._call(self._predicted(), args, kwargs, self._raw)
        if self._replica is None:  # in evaluation it serves every batch, for modes stay
            self._replica = self._call.bound(self._predicted(), self._raw)
        return self._replica(*args, **kwargs)

    def record(self) -> list[Arguments]:
        """Keep the arguments of each call from now on, in the list that is returned."""
        self._recorded = []
        return self._recorded

    def _predicted(self) -> dict[str, Tensor]:
        """The weights, without the dimension K for one draw; again if a gradient is wanted late."""
        if self._weights is None or (torch.is_grad_enabled() and not self._has_graph):
            self._weights = self._predict(self.gamma if len(self.gamma) > 1 else self.gamma[0])
            self._has_graph = torch.is_grad_enabled()
        return self._weights
