"""Norms of one minibatch's gradients, by hooks, before anything scales or adds them up."""

from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mip_lightning.functional.factored_gradient import FactoredGradient
from mip_lightning.hypernetworks.heads import DenseHead
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.utilities.norms import norm

PARTS = ("theta", "theta0", "trunk", "head")
"""What the gradient is taken with respect to; ``theta`` are the predicted weights."""


class GradientNorms:
    """Watches one backward pass of a hypermodel.

    The hooks see the gradient of this minibatch alone, before it is added to those of earlier ones,
    and before ranks average theirs. The gradients with respect to theta0 and to a dense head are
    never formed for it: with ``g_k`` the gradient with respect to the k-th predicted change and
    ``h_k`` the last hidden activation they are ``sum_k g_k`` and ``sum_k g_k h_k^T``.

    Args:
        model: The model.
    """

    def __init__(self, model: HyperModel) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._hidden: list[Float[Tensor, "K H"]] = []
        self._changes: list[tuple[int, Float[Tensor, "K P"]]] = []
        self._squares: dict[str, list[Tensor]] = {"trunk": [], "head": []}

    def __enter__(self) -> "GradientNorms":
        head = self._model.hypernetwork.head
        self._handles.append(head.register_forward_hook(self._watch_change))
        own = set(head.parameters())
        for parameter in self._model.hypernetwork.parameters():
            part = "head" if parameter in own else "trunk"
            if parameter.requires_grad and not (part == "head" and isinstance(head, DenseHead)):
                self._handles.append(parameter.register_hook(self._squares_of(part)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def norms(self) -> dict[str, Float[Tensor, ""]]:
        """The norm for each of ``PARTS``, after the backward pass.

        Returns:
            Scalars on the model's device; for ``theta`` of K draws the norm of all K gradients
            together.
        """
        zero = next(self._model.hypernetwork.parameters()).new_zeros(())
        if not self._changes:
            return dict.fromkeys(PARTS, zero)
        gradient = torch.cat([change for _, change in self._changes]).float()
        norms = {name: sum(values, zero).sqrt() for name, values in self._squares.items()}
        if isinstance(self._model.hypernetwork.head, DenseHead):
            hidden = torch.cat([self._hidden[index] for index, _ in self._changes]).float()
            norms["head"] = FactoredGradient(gradient, hidden).norm()
        return {"theta": norm(gradient), "theta0": norm(gradient.sum(dim=0)), **norms}

    def _watch_change(self, head: nn.Module, inputs: tuple[Any, ...], change: Tensor) -> None:
        if not change.requires_grad:
            return
        index = len(self._hidden)
        self._hidden.append(inputs[0].detach())
        change.register_hook(lambda gradient: self._changes.append((index, gradient.detach())))

    def _squares_of(self, part: str) -> Any:
        def add(gradient: Tensor) -> None:
            self._squares[part].append(norm(gradient.detach()).square())

        return add
